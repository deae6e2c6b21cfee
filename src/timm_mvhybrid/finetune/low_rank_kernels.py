"""Both passes of an adapter on a CPU, row by row: what is dropped is drawn, used and forgotten in a core's first cache.

By tensor operations an adapter is eight passes over memory, of which drawing is the longest; here it is one pass over the
layer's input, and one more over its gradient. Noise is a function of seed, row and column, so nothing of it is kept.
The arithmetic is float32. Importing this module needs numba.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ops.fused.rows import in_parts, jit, num_parts

GROUP = 4
"""Rows that are worked on at once, and what the rank of the matrices is padded to."""
_MIN_ROWS = 64
"""Rows that are worth a thread."""
# its own types know nothing of what is compiled
numba: Any = importlib.import_module("numba")
_u32, _f32 = np.uint32, np.float32


@numba.njit(inline="always")
def _mix(x: Any, key: Any) -> Any:
    """Turns a counter into 32 bits that look random: two rounds of shift and product, between which a key goes in.

    Source: the constants are those of Wellons's hash prospector ("lowbias32").
    """
    x = _u32(x ^ _u32(x >> _u32(16)))
    x = _u32(x * _u32(0x7FEB352D))
    x = _u32(x ^ key)
    x = _u32(x ^ _u32(x >> _u32(15)))
    x = _u32(x * _u32(0x846CA68B))
    return _u32(x ^ _u32(x >> _u32(16)))


@numba.njit(inline="always")
def _keep(x: Any, out: Any, row: Any, seed: Any, threshold: Any) -> None:
    """Writes x, or 0 where 16 bits drawn for the row and the column are below the threshold."""
    n = x.shape[0]
    if threshold == 0:
        for k in range(n):
            out[k] = x[k]
        return
    # two keys a row: of two rows with the same numbers both would have to agree
    key, other = _mix(_u32(row), _u32(seed)), _mix(_u32(row), _u32(seed >> 32))
    limit, zero = _u32(threshold), _f32(0)
    half = (n + 1) // 2
    for k in range(n - half):
        bits = _mix(_u32(_u32(k) + key), other)
        out[k] = x[k] if _u32(bits & _u32(0xFFFF)) >= limit else zero
        out[k + half] = x[k + half] if _u32(bits >> _u32(16)) >= limit else zero
    if 2 * half > n:
        bits = _mix(_u32(_u32(half - 1) + key), other)
        out[half - 1] = x[half - 1] if _u32(bits & _u32(0xFFFF)) >= limit else zero


@jit
def _forward(
    x: Any, A: Any, B: Any, bias: Any, inner: Any, y: Any, start: Any, stop: Any, seed: Any, threshold: Any
) -> None:
    rank, length = A.shape[0], x.shape[1]
    kept = np.empty(length, np.float32)
    for i in range(start, stop):
        _keep(x[i], kept, i, seed, threshold)
        out = y[i]
        for k in range(out.shape[0]):
            out[k] = bias[k]
        for j in range(0, rank, 4):
            a0, a1, a2, a3 = A[j], A[j + 1], A[j + 2], A[j + 3]
            t0, t1, t2, t3 = _f32(0), _f32(0), _f32(0), _f32(0)
            for k in range(length):
                v = kept[k]
                t0 += v * a0[k]
                t1 += v * a1[k]
                t2 += v * a2[k]
                t3 += v * a3[k]
            inner[i, j], inner[i, j + 1], inner[i, j + 2], inner[i, j + 3] = t0, t1, t2, t3
            b0, b1, b2, b3 = B[j], B[j + 1], B[j + 2], B[j + 3]
            for k in range(out.shape[0]):
                out[k] += t0 * b0[k] + t1 * b1[k] + t2 * b2[k] + t3 * b3[k]


@jit
def _backward(
    grad: Any,
    x: Any,
    A: Any,
    B: Any,
    inner: Any,
    grad_A: Any,
    grad_B: Any,
    grad_x: Any,
    needs_x: Any,
    start: Any,
    stop: Any,
    seed: Any,
    threshold: Any,
) -> None:
    rank, length, width = A.shape[0], x.shape[1], grad.shape[1]
    kept, row = np.zeros((4, length), np.float32), np.empty(length, np.float32)
    # of the group's rows: what the adapter passes on, and gradients of it
    g, h = np.zeros((rank, 4), np.float32), np.zeros((rank, 4), np.float32)
    for i in range(start, stop, 4):
        num = min(4, stop - i)
        for r in range(4):
            if r >= num:
                g[:, r] = 0
                h[:, r] = 0
                continue
            flat = grad[i + r]
            _keep(x[i + r], kept[r], i + r, seed, threshold)
            for j in range(0, rank, 4):
                b0, b1, b2, b3 = B[j], B[j + 1], B[j + 2], B[j + 3]
                t0, t1, t2, t3 = _f32(0), _f32(0), _f32(0), _f32(0)
                for k in range(width):
                    v = flat[k]
                    t0 += v * b0[k]
                    t1 += v * b1[k]
                    t2 += v * b2[k]
                    t3 += v * b3[k]
                g[j, r], g[j + 1, r], g[j + 2, r], g[j + 3, r] = t0, t1, t2, t3
            for j in range(rank):
                h[j, r] = inner[i + r, j]
            if needs_x:
                for j in range(0, rank, 4):
                    a0, a1, a2, a3 = A[j], A[j + 1], A[j + 2], A[j + 3]
                    t0, t1, t2, t3 = g[j, r], g[j + 1, r], g[j + 2, r], g[j + 3, r]
                    if j == 0:
                        for k in range(length):
                            row[k] = t0 * a0[k] + t1 * a1[k] + t2 * a2[k] + t3 * a3[k]
                    else:
                        for k in range(length):
                            row[k] += t0 * a0[k] + t1 * a1[k] + t2 * a2[k] + t3 * a3[k]
                _keep(row, grad_x[i + r], i + r, seed, threshold)
        # rows beyond the last one count nothing, whatever is read there
        last = num - 1
        f0, f1, f2, f3 = grad[i], grad[i + min(1, last)], grad[i + min(2, last)], grad[i + min(3, last)]
        x0, x1, x2, x3 = kept[0], kept[1], kept[2], kept[3]
        for j in range(rank):
            t0, t1, t2, t3 = g[j, 0], g[j, 1], g[j, 2], g[j, 3]
            out = grad_A[j]
            for k in range(length):
                out[k] += t0 * x0[k] + t1 * x1[k] + t2 * x2[k] + t3 * x3[k]
            t0, t1, t2, t3 = h[j, 0], h[j, 1], h[j, 2], h[j, 3]
            out = grad_B[j]
            for k in range(width):
                out[k] += t0 * f0[k] + t1 * f1[k] + t2 * f2[k] + t3 * f3[k]


def start_of(
    x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, seed: int, threshold: int
) -> tuple[Tensor, Tensor]:
    """Computes what the fat product of the layer is added to, b + s (m ∘ x) Aᵀ Bᵀ, and (m ∘ x) Aᵀ.

    Args:
        x: Input, (rows, in), float32 as all others.
        bias: (out,), or None.
        A: (rank, in).
        B: (out, rank).
        scale: s.
        seed: Of the noise, from 0 to 2⁶⁴ − 1.
        threshold: What is dropped, of 65,536.

    Returns:
        (rows, out), and (rows, rank) padded to a multiple of 4.
    """
    y = x.new_empty(len(x), len(B))
    padded, scaled = _padded(A), _padded(B.T * scale)
    inner = x.new_empty(len(x), len(padded))
    bias = x.new_zeros(len(B)) if bias is None else bias.detach().clone()
    arrays = [_array(tensor) for tensor in (x, padded, scaled, bias, inner, y)]
    in_parts(
        lambda part, _: _forward(*arrays, part.start, part.stop, np.uint64(seed), threshold),
        len(x),
        least=_MIN_ROWS,
    )
    return y, inner


def gradients(
    grad: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    inner: Tensor,
    scale: float,
    seed: int,
    threshold: int,
    *,
    needs_x: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Computes gradients of the adapter.

    Args:
        grad: Of its output, (rows, out), float32 as all others.
        x: As for :func:`start_of`.
        A: Likewise.
        B: Likewise.
        inner: What it returned.
        scale: Likewise.
        seed: Likewise.
        threshold: Likewise.
        needs_x: Whether that of x is wanted.

    Returns:
        Those of A and B, and that of x, to which the layer's own is yet to be added.
    """
    padded, scaled = _padded(A), _padded(B.T * scale)
    number = num_parts(len(x), _MIN_ROWS)
    grad_A = x.new_zeros(number, *padded.shape)
    grad_B = x.new_zeros(number, *scaled.shape)
    grad_x = torch.empty_like(x) if needs_x else x.new_empty(1, 1)
    given = [_array(tensor) for tensor in (grad, x, padded, scaled, inner)]
    outputs = [(_array(grad_A[n]), _array(grad_B[n]), _array(grad_x)) for n in range(number)]
    in_parts(
        lambda part, n: _backward(
            *given, *outputs[n], needs_x, part.start, part.stop, np.uint64(seed), threshold
        ),
        len(x),
        least=_MIN_ROWS,
        step=GROUP,
    )
    rank = len(A)
    whole = grad_B.sum(0)[:rank].mul_(scale).T
    return grad_A.sum(0)[:rank], whole, grad_x if needs_x else None


def _padded(matrix: Tensor) -> Tensor:
    """Copies a matrix, with rows of zeros up to a multiple of ``GROUP``.

    A parameter itself must not become an array: its memory could not be freed any more, which FSDP does.
    """
    rows = len(matrix)
    padded = matrix.new_zeros(rows + -rows % GROUP, matrix.shape[1])
    padded[:rows] = matrix.detach()
    return padded


def _array(tensor: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = tensor.detach().contiguous().numpy()
    return found
