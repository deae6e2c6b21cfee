"""The specification of Hydra's quasiseparable matrix: two plain loops over time, a shift and a diagonal."""

import torch
from torch import Tensor

from ..precision import accumulation_dtype
from ..ssd.reference import ssd_scan_reference


def quasiseparable_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor, diagonal: Tensor
) -> Tensor:
    """Adds the scans of both directions, each a step late, and a diagonal.

    Formula, source and arguments: :func:`.quasiseparable`. All sums run in float32, or in float64 for float64 input.

    Examples:
        >>> import torch
        >>> x, zero = torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 2, 1)
        >>> B = torch.ones(1, 3, 2, 1, 1)
        >>> y = quasiseparable_reference(x, zero, torch.zeros(1), B, B, torch.zeros(1), torch.zeros(1, 3, 1))
        >>> (y.flatten() / torch.log(torch.tensor(2.0))).round().tolist()  # two neighbours each, of step log 2
        [2.0, 2.0, 2.0]
    """
    dtype = accumulation_dtype(x.dtype)
    inputs = x.to(dtype)
    scans = []
    for direction in range(2):
        scan = ssd_scan_reference(
            inputs,
            dt[:, :, direction],
            A,
            B[:, :, direction],
            C[:, :, direction],
            None,
            dt_bias,
            dt_softplus=True,
            reverse=direction == 1,
        )
        assert isinstance(scan, Tensor)
        scans.append(scan)
    nothing = torch.zeros_like(inputs[:, :1])
    before = torch.cat([nothing, scans[0][:, :-1]], dim=1)
    after = torch.cat([scans[1][:, 1:], nothing], dim=1)
    return (before + after + diagonal.to(dtype).unsqueeze(-1) * inputs).to(x.dtype)
