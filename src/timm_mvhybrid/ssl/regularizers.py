"""What keeps class features apart: (images, width) → a scalar that falls as they spread over the sphere."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.precision import at_least_float32, autocast_disabled
from .lightly_losses import KoLeoLoss


class KoLeo(nn.Module):
    """−mean_i log min_{j ≠ i} ‖z_i − z_j‖ of L2-normalised features z, by lightly, in float32 at least.

    Equal features give a large finite number, not infinity, as in half width they would.
    Source: Sablayrolles et al. (arXiv 1806.03198), equation 4; DINOv2 (arXiv 2304.07193), section 4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss = KoLeoLoss()

    def forward(self, features: Tensor) -> Tensor:
        """Computes the regulariser of features (n, D)."""
        with autocast_disabled(features.device.type):
            value: Tensor = self.loss(at_least_float32(features))
            return value


class KernelDensity(nn.Module):
    """mean_i log mean_j exp(κ z_iᵀ z_j): the log density of L2-normalised features under a von Mises-Fisher kernel.

    It has no pole where two features coincide, as KoLeo has, and it weighs all neighbours, not the nearest alone. κ is
    how fast the kernel falls off: a neighbour at angle α counts exp(κ (cos α − 1)) times as much as
    the feature itself, for κ = 5 a tenth at 57°. Source: Virchow2 (arXiv 2408.00738), section on regularisation, after
    Wang and Isola (arXiv 2005.10242); j = i is counted, which shifts no gradient of its own.

    Args:
        concentration: κ.
    """

    def __init__(self, concentration: float = 5.0) -> None:
        super().__init__()
        self.concentration = concentration

    def forward(self, features: Tensor) -> Tensor:
        """Computes the regulariser of features (n, D)."""
        with autocast_disabled(features.device.type):
            z = F.normalize(at_least_float32(features), dim=1)
            similarities = self.concentration * (z @ z.T)
            densities = torch.logsumexp(similarities, dim=1) - math.log(max(len(z), 1))
            return densities.mean()
