"""What one more token reads of a scan's state that the ordinary tokens have left; the state does not notice it.

The ordinary scan is not run again, and not changed by a token: a token inserted with a step size of 0 would leave the
states alone, but move the others to other places of chunks and kernels, where sums round otherwise. So the state at
one place is summed up directly, h = Σ_t exp(A σ_t) δ_t B_t u_t with σ_t the steps between t and that place.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..layers.scan_tokens import ScanTokens
from ..ops import selective_scan
from ..ops.fused.rows import compiled_kernels
from ..ops.precision import accumulation_dtype, autocast_disabled
from ..ops.spectral import MATRIX_LENGTH
from ..ops.step_sizes import biased_steps, softplus_slope, step_sizes, write_step_sizes

_WORK_ELEMENTS = 1 << 18
"""Elements of one work buffer, which should stay in a core's cache."""
_LOG2_E = 1.4426950408889634


def read_selective_scan(
    tokens: ScanTokens, C: Tensor, A: Tensor, dt_bias: Tensor, *, reverse: bool = False
) -> Tensor:
    """Reads the state that a selective scan is in after its last token, y = C · h.

    The same as ``selective_scan`` with one more token, of step size 0, after the others. On a CPU the sum over tokens
    takes one exponential a token, channel and state, half of what the scan itself takes; elsewhere, and where the
    computation is compiled, the fused scan gives its last state.

    Args:
        tokens: What the scan reads, x (batch, length, d_inner).
        C: What the one token reads of the state, (batch, 1, groups, d_state).
        A: State matrix, (d_inner, d_state), negative.
        dt_bias: Added to the tokens' ``dt``, (d_inner,).
        reverse: Whether the scan runs from the last token to the first.

    Returns:
        y, (batch, 1, d_inner), in float32, or in float64 for float64 input.
    """
    x, dt, B, _ = tokens
    groups = B.shape[2]
    dtype = accumulation_dtype(x.dtype)
    with autocast_disabled(x.device.type):
        if groups > 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
            matrix = B.permute(0, 2, 3, 1)
            _, state = selective_scan(
                x.transpose(1, 2),
                dt.transpose(1, 2),
                A,
                matrix,
                matrix,
                delta_bias=dt_bias,
                delta_softplus=True,
                return_last_state=True,
                reverse=reverse,
            )
            rows = C[:, 0].to(dtype).repeat_interleave(x.shape[2] // groups, dim=1)
            return (state * rows).sum(-1).unsqueeze(1)
        step = _StepSizes.apply(dt, dt_bias, dtype)
        between = _steps_between(step, reverse)
        weights = (B[:, :, 0] * C[:, :, 0]).to(dtype)
        return _SumOfDecays.apply(step * x.to(dtype), between, weights, A.to(dtype)).unsqueeze(1)


def read_ssd_scan(
    tokens: ScanTokens, C: Tensor, A: Tensor, dt_bias: Tensor, direction: int, *, reverse: bool = False
) -> Tensor:
    """Reads the state that one direction of Hydra's matrix is in after its last token.

    A head has one decay rate, so this is an attention whose weights are products of B, C and decays.

    Args:
        tokens: What the scans read, x (batch, length, heads, headdim).
        C: What the one token reads of the states, (batch, 1, 2, groups, d_state).
        A: Decay rates, (heads,), negative.
        dt_bias: Added to the tokens' ``dt``, (heads,).
        direction: 0 for the forward scan, 1 for the backward one.
        reverse: Whether the scan runs from the last token to the first.

    Returns:
        y, (batch, 1, heads, headdim), in float32, or in float64 for float64 input.
    """
    x, dt, B, _ = tokens
    dtype = accumulation_dtype(x.dtype)
    with autocast_disabled(x.device.type):
        step = step_sizes(dt[:, :, direction], dt_bias, True, dtype)
        decays = torch.exp(_steps_between(step, reverse) * A.to(dtype))
        products = (B[:, :, direction].to(dtype) * C[:, :, direction].to(dtype)).sum(-1)
        groups = products.shape[2]
        weights = decays * step * products.repeat_interleave(x.shape[2] // groups, dim=2)
        return torch.einsum("blh,blhp->bhp", weights, x.to(dtype)).unsqueeze(1)


def _steps_between(step: Tensor, reverse: bool) -> Tensor:
    """Sums the step sizes (batch, length, channels) of the tokens that a scan meets after each one."""
    length = step.shape[1]
    if length <= MATRIX_LENGTH:
        # a CPU sums along strided tokens more slowly than it multiplies by ones
        ones = step.new_ones(length, length)
        return torch.matmul(ones.tril(-1) if reverse else ones.triu(1), step)
    if reverse:
        return F.pad(step[:, :-1], [0, 0, 1, 0]).cumsum(1)
    return F.pad(step[:, 1:], [0, 0, 0, 1]).flip(1).cumsum(1).flip(1)


class _StepSizes(torch.autograd.Function):
    """softplus(raw + bias) by the scans' own softplus, since torch's takes five times as long on a CPU."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        step = torch.empty(raw.shape, dtype=dtype, device=raw.device)
        write_step_sizes(step, raw, bias, True)
        ctx.save_for_backward(raw, bias)
        return step

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        raw, bias = ctx.saved_tensors
        grad = grad * softplus_slope(biased_steps(raw, bias, grad.dtype))
        return grad.to(raw.dtype), grad.sum((0, 1)).to(bias.dtype), None


class _SumOfDecays(torch.autograd.Function):
    """y_c = Σ_t u_tc Σ_n exp(A_cn σ_tc) g_tn, without ever holding all exponentials; backward computes them again.

    With P_tnc = exp(A_cn σ_tc) g_tn and w_tc = ȳ_c u_tc: dσ_tc = w_tc Σ_n A_cn P_tnc, dA_cn = Σ_t w_tc σ_tc P_tnc,
    du_tc = ȳ_c Σ_n P_tnc and dg_tn = Σ_c w_tc exp(A_cn σ_tc).
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, between: Tensor, weights: Tensor, A: Tensor) -> Tensor:
        ctx.save_for_backward(u, between, weights, A)
        rates = A.T.contiguous() * _LOG2_E
        ctx.kernels = compiled_kernels(f"{__package__}.state_reading_kernels", u)
        if ctx.kernels is not None:
            found: Tensor = ctx.kernels.sum_of_decays(u, between, weights, rates)
            return found
        y = u.new_zeros(u.shape[0], u.shape[2])
        for rows, times in _parts(u, rates):
            decays = torch.mul(between[rows, times].unsqueeze(2), rates).exp2_()
            summed = torch.matmul(weights[rows, times].unsqueeze(2), decays).squeeze(2)
            y[rows] += summed.mul_(u[rows, times]).sum(1)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, between, weights, A = ctx.saved_tensors
        slopes = A.T.contiguous()
        rates = slopes * _LOG2_E
        if ctx.kernels is not None:
            grads = ctx.kernels.gradients(grad_y, u, between, weights, rates, slopes)
            return *grads[:3], grads[3].T
        grad_u, grad_between, grad_weights = (torch.empty_like(x) for x in (u, between, weights))
        grad_slopes = torch.zeros_like(slopes)
        for rows, times in _parts(u, rates):
            at, g = between[rows, times], weights[rows, times].unsqueeze(2)
            w = grad_y[rows].unsqueeze(1) * u[rows, times]
            decays = torch.mul(at.unsqueeze(2), rates).exp2_()
            # not as a product with a column, which takes six times as long on a CPU
            grad_weights[rows, times] = (decays * w.unsqueeze(2)).sum(3)
            grad_u[rows, times] = torch.matmul(g, decays).squeeze(2) * grad_y[rows].unsqueeze(1)
            decays.mul_(g.transpose(2, 3))
            grad_slopes += (decays * (w * at).unsqueeze(2)).sum((0, 1))
            grad_between[rows, times] = decays.mul_(slopes).sum(2) * w
        return grad_u, grad_between, grad_weights, grad_slopes.T


def _parts(u: Tensor, rates: Tensor) -> list[tuple[slice, slice]]:
    """Cuts rows and tokens of u, (batch, length, channels), so that rows · tokens · states · channels fit a buffer."""
    batch, length, _ = u.shape
    most = max(1, _WORK_ELEMENTS // rates.numel())
    rows = max(1, min(batch, most // 16))
    times = max(1, min(length, most // rows))
    return [
        (slice(row, row + rows), slice(time, time + times))
        for row in range(0, batch, rows)
        for time in range(0, length, times)
    ]
