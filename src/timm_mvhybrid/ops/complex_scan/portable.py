"""The complex scan in functional operations on real numbers: what exporters and the transforms of torch.func can read.

No complex dtype, which ONNX has not: a pole is a rotation and a shrinkage of the plane of real and imaginary part. Time is
cut into chunks as in ``selective_scan/portable.py``; a chunk's decay is exp(A Σδ) and a rotation by w Σδ.
"""

import torch
from torch import Tensor

from ..chunked_time import cut_time
from ..precision import accumulation_dtype, autocast_disabled
from ..selective_scan.portable import steps_per_chunk
from ..step_sizes import step_sizes


def complex_scan_portable(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    w: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    reverse: bool = False,
) -> Tensor:
    """Runs the scan; arguments and result as :func:`.complex_scan`.

    Differentiable any number of times, in forward and in reverse mode, and under vmap; the batch may be symbolic, the
    length may not.
    """
    with autocast_disabled(u.device.type):
        if reverse:
            u, delta, B, C = (tokens.flip(1) for tokens in (u, delta, B, C))
        dtype = accumulation_dtype(u.dtype)
        length, groups = u.shape[1], B.shape[2]
        x = u.to(dtype)
        step = step_sizes(delta, delta_bias, True, dtype)
        rates, angles = (_grouped(matrix, groups, dtype) for matrix in (A, w))
        steps = steps_per_chunk(length)
        chunks = -(-length // steps)

        def per_channel(tokens: Tensor) -> Tensor:
            """Brings (batch, length, d_inner) into the form (batch, chunks, steps, groups, 1, channels)."""
            return cut_time(tokens, chunks, steps).unflatten(-1, (groups, 1, -1))

        def per_state(matrix: Tensor) -> list[Tensor]:
            """Brings B or C into two of the form (batch, chunks, steps, groups, pairs, 1)."""
            return list(cut_time(matrix.to(dtype), chunks, steps).unsqueeze(-1).chunk(2, dim=-2))

        cut_step, driven = per_channel(step), per_channel(step * x)
        turn = _turn(cut_step, rates, angles)
        chunk_turn = _turn(cut_step.sum(2, keepdim=True), rates, angles)
        drive = [driven * part for part in per_state(B)]
        output = per_state(C)

        def of_time(parts: list[Tensor], t: int) -> tuple[Tensor, Tensor]:
            return parts[0][:, :, t : t + 1], parts[1][:, :, t : t + 1]

        h = of_time(drive, 0)
        for t in range(1, steps):
            h = _advance(of_time(turn, t), h, of_time(drive, t))
        # carried from chunk to chunk
        state = (torch.zeros_like(h[0][:, :1]), torch.zeros_like(h[1][:, :1]))
        starts: list[tuple[Tensor, Tensor]] = []
        for chunk in range(chunks):
            starts.append(state)
            here = slice(chunk, chunk + 1)
            state = _advance(
                (chunk_turn[0][:, here], chunk_turn[1][:, here]), state, (h[0][:, here], h[1][:, here])
            )
        h = (torch.cat([s[0] for s in starts], dim=1), torch.cat([s[1] for s in starts], dim=1))
        rows = []
        for t in range(steps):
            h = _advance(of_time(turn, t), h, of_time(drive, t))
            c = of_time(output, t)
            rows.append((c[0] * h[0] - c[1] * h[1]).sum(-2))
        y = 2.0 * torch.cat(rows, dim=2).flatten(3).flatten(1, 2)[:, :length]
        if D is not None:
            y = y + x * D.to(dtype)
        y = y.to(u.dtype)
        return y.flip(1) if reverse else y


def _grouped(matrix: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """Turns (d_inner, pairs) into (groups, pairs, channels)."""
    return matrix.to(dtype).unflatten(0, (groups, -1)).transpose(1, 2)


def _turn(step: Tensor, rates: Tensor, angles: Tensor) -> list[Tensor]:
    """Computes exp(δ (A + i w)) as its real and imaginary part."""
    size, angle = (step * rates).exp(), step * angles
    return [size * angle.cos(), size * angle.sin()]


def _advance(
    turn: tuple[Tensor, Tensor], h: tuple[Tensor, Tensor], drive: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Multiplies by the turn and adds the drive, in real and imaginary parts."""
    return (
        turn[0] * h[0] - turn[1] * h[1] + drive[0],
        turn[0] * h[1] + turn[1] * h[0] + drive[1],
    )
