"""What a token reads of a selective scan's state, on a CPU in float32: no exponential is written to memory.

Importing this module needs numba.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.fused.rows import in_parts, jit, num_parts

# its own types know nothing of what is compiled
numba: Any = importlib.import_module("numba")
_f32, _i32 = np.float32, np.int32
# ln(2)^k / k!: on half a unit to either side the series is off by 5e-9
_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (
    _f32(0.6931471805599453**k / np.prod(np.arange(1.0, k + 1))) for k in range(1, 8)
)


@numba.njit(inline="always")
def _exp2(x: Any) -> Any:
    """2^x in float32; below 2^-126 that."""
    x = min(max(x, _f32(-126)), _f32(127))
    whole = np.floor(x + _f32(0.5))
    f = x - whole
    series = _C4 + f * (_C5 + f * (_C6 + f * _C7))
    series = _f32(1) + f * (_C1 + f * (_C2 + f * (_C3 + f * series)))
    return series * _i32(_i32(_i32(whole) + _i32(127)) << _i32(23)).view(np.float32)


@jit
def _forward(u: Any, between: Any, weights: Any, rates: Any, y: Any, start: Any, stop: Any) -> None:
    _, length, channels = u.shape
    summed = np.empty(channels, np.float32)
    for b in range(start, stop):
        out = y[b]
        out[:] = 0
        for t in range(length):
            at, given = between[b, t], u[b, t]
            summed[:] = 0
            for n in range(rates.shape[0]):
                g, rate = weights[b, t, n], rates[n]
                for c in range(channels):
                    summed[c] += g * _exp2(rate[c] * at[c])
            for c in range(channels):
                out[c] += given[c] * summed[c]


@jit
def _backward(
    grad: Any,
    u: Any,
    between: Any,
    weights: Any,
    rates: Any,
    slopes: Any,
    grad_u: Any,
    grad_between: Any,
    grad_weights: Any,
    grad_slopes: Any,
    start: Any,
    stop: Any,
) -> None:
    _, length, channels = u.shape
    # each loop writes one array, so that a compiler sees which may be the same
    decay, w, w_at, to_u, to_at = np.empty((5, channels), np.float32)
    for b in range(start, stop):
        for t in range(length):
            at, given, passed = between[b, t], u[b, t], grad[b]
            for c in range(channels):
                w[c] = passed[c] * given[c]
            for c in range(channels):
                w_at[c] = w[c] * at[c]
            to_u[:] = 0
            to_at[:] = 0
            for n in range(rates.shape[0]):
                g, rate, slope, of_slope = weights[b, t, n], rates[n], slopes[n], grad_slopes[n]
                for c in range(channels):
                    decay[c] = _exp2(rate[c] * at[c])
                total = _f32(0)
                for c in range(channels):
                    total += w[c] * decay[c]
                grad_weights[b, t, n] = total
                for c in range(channels):
                    to_u[c] += g * decay[c]
                for c in range(channels):
                    to_at[c] += g * slope[c] * decay[c]
                for c in range(channels):
                    of_slope[c] += g * w_at[c] * decay[c]
            out = grad_u[b, t]
            for c in range(channels):
                out[c] = passed[c] * to_u[c]
            out = grad_between[b, t]
            for c in range(channels):
                out[c] = w[c] * to_at[c]


def sum_of_decays(u: Tensor, between: Tensor, weights: Tensor, rates: Tensor) -> Tensor:
    """Computes y_c = Σ_t u_tc Σ_n 2^(r_nc σ_tc) g_tn.

    Args:
        u: (batch, length, channels), float32 as all others.
        between: σ, likewise.
        weights: g, (batch, length, states).
        rates: r, (states, channels).

    Returns:
        (batch, channels).
    """
    y = u.new_empty(u.shape[0], u.shape[2])
    arrays = [x.detach().contiguous().numpy() for x in (u, between, weights, rates)]
    out = y.numpy()
    in_parts(lambda part, _: _forward(*arrays, out, part.start, part.stop), len(u))
    return y


def gradients(
    grad: Tensor, u: Tensor, between: Tensor, weights: Tensor, rates: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes the gradients of :func:`sum_of_decays`.

    Args:
        grad: Of y.
        u: As there.
        between: Likewise.
        weights: Likewise.
        rates: Likewise.
        slopes: r · ln 2, of which the last gradient is.

    Returns:
        Those of u, σ, g and the slopes.
    """
    grad_u, grad_between, grad_weights = (torch.empty(x.shape) for x in (u, between, weights))
    partial = torch.zeros(num_parts(len(u)), *slopes.shape)
    arrays = [x.detach().contiguous().numpy() for x in (grad, u, between, weights, rates, slopes)]
    outputs = [x.numpy() for x in (grad_u, grad_between, grad_weights)]
    sums = partial.numpy()
    in_parts(lambda part, number: _backward(*arrays, *outputs, sums[number], part.start, part.stop), len(u))
    return grad_u, grad_between, grad_weights, partial.sum(0)
