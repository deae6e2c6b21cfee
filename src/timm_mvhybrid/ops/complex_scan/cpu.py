"""The complex scan in plain torch: chunked in time, real and imaginary parts in planes of their own.

As ``selective_scan/cpu.py``, whose layout and chunks it has: a state of 2 pairs takes the memory of as many real ones. A
step is three fused multiply-adds instead of one. Complex dtypes would interleave the parts, and torch's complex exp is
scalar code on a CPU. Forward keeps the state at the start of every chunk only; backward rebuilds the rest.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..precision import accumulation_dtype
from ..selective_scan.cpu import grouped_matrix
from ..step_sizes import biased_steps, softplus_slope, write_step_sizes
from ..workspace import cut_batch, scratch
from .inputs import Gradients, Inputs, Outputs

CHUNK = 16
"""Time steps a chunk."""
PART_ELEMENTS = 1 << 20
"""Elements of one work buffer; a larger batch is worked off in parts of this size."""
LOG2_E = math.log2(math.e)
"""exp2 takes a quarter of the time of exp on a CPU."""


def num_chunks(length: int) -> int:
    """How many states :func:`forward` saves for a sequence of ``length`` steps."""
    return -(-length // CHUNK)


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Runs the scan in token-major layout."""
    u, delta, A, w, B, C, D, delta_bias, reverse = inputs
    dtype = accumulation_dtype(u.dtype)
    batch, length, _ = u.shape
    groups = B.shape[2]
    rates, angles = grouped_matrix(A, groups, dtype), grouped_matrix(w, groups, dtype)
    pairs, channels = rates.shape[1:]
    y = u.new_empty(u.shape, dtype=dtype)
    states = y.new_empty(num_chunks(length) if save_states else 0, batch, groups, 2 * pairs, channels)
    parts, most_rows = cut_batch(u, PART_ELEMENTS, 2 * CHUNK * rates.numel())
    work = _Work(rates, angles, most_rows, 2, u.shape[1:])
    for rows in parts:
        x, b, c = (v[rows].to(dtype) for v in (u, B, C))
        c = doubled(c)
        step, driven = (v[: len(x)] for v in work.tokens)
        write_step_sizes(step, delta[rows], delta_bias, True)
        torch.mul(step, x, out=driven)
        h = y.new_zeros(len(x), groups, 2, pairs, channels)
        for chunk, times in _chunks(length, reverse):
            if save_states:
                states[chunk, rows] = h.flatten(2, 3)
            h_chunk = work.trajectory(step, driven, b, h, times, reverse)
            y[rows, times] = torch.matmul(_of(c, times).unsqueeze(-2), h_chunk).flatten(2).transpose(0, 1)
            h.copy_(h_chunk[0 if reverse else -1].unflatten(2, (2, pairs)))
        if D is not None:
            y[rows].addcmul_(x, D.to(dtype))
    return y.to(u.dtype), states


def backward(grad_y: Tensor, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`forward`.

    With planes of real and imaginary parts, the turn R_t = exp(δ_t A) (cos δ_t w, sin δ_t w), ȳ the gradient of y and
    C' = (2 Re C, −2 Im C), the adjoint state is g_t = C'_t ȳ_t + s_{t+1} with s_t = R_tᵀ g_t, and::

        dC'_t = Σ_d ȳ_t h_t        dB_t = Σ_d g_t δ_t u_t        d(δu)_t = Σ_n g_t B_t
        q_t + i r_t = s_t · conj h_{t−1}
        dδ_t = Σ_n (q_t A + r_t w) + u_t d(δu)_t        dA = Σ_t q_t δ_t        dw = Σ_t r_t δ_t
    """
    u, delta, A, w, B, C, D, delta_bias, reverse = inputs
    dtype = accumulation_dtype(u.dtype)
    length, groups = u.shape[1], B.shape[2]
    rates, angles = grouped_matrix(A, groups, dtype), grouped_matrix(w, groups, dtype)
    pairs = rates.shape[1]
    grad_u, grad_delta, grad_B, grad_C = (v.new_empty(v.shape, dtype=dtype) for v in (u, delta, B, C))
    grad_A, grad_w = torch.zeros_like(rates), torch.zeros_like(angles)
    grad_D, grad_bias = (None if v is None else rates.new_zeros(v.shape) for v in (D, delta_bias))
    parts, most_rows = cut_batch(u, PART_ELEMENTS, 2 * CHUNK * rates.numel())
    work = _Work(rates, angles, most_rows, 4, u.shape[1:])
    for rows in parts:
        x, b, c, grad = (v[rows].to(dtype) for v in (u, B, C, grad_y))
        c = doubled(c)
        step, driven, grad_driven = (v[: len(x)] for v in work.tokens)
        write_step_sizes(step, delta[rows], delta_bias, True)
        torch.mul(step, x, out=driven)
        grad_step = grad_delta[rows]
        carried: Tensor | None = None
        for chunk, times in reversed(_chunks(length, reverse)):
            h = states[chunk, rows].unflatten(2, (2, pairs))
            h_chunk = work.trajectory(step, driven, b, h, times, reverse)
            grad_chunk = _per_channel(grad, times, groups)
            grad_C[rows, times] = doubled(
                torch.matmul(h_chunk, grad_chunk.unsqueeze(-1)).squeeze(-1).transpose(0, 1)
            )
            g = work.adjoints(_of(c, times), grad_chunk, carried, reverse)
            driven_chunk, b_chunk = _per_channel(driven, times, groups), _of(b, times)
            grad_B[rows, times] = torch.matmul(g, driven_chunk.unsqueeze(-1)).squeeze(-1).transpose(0, 1)
            grad_driven[:, times] = torch.matmul(b_chunk.unsqueeze(-2), g).flatten(2).transpose(0, 1)
            carried = work.carried(reverse)
            q, r = work.slopes(h, reverse)
            step_chunk = _per_channel(step, times, groups).unsqueeze(-2)
            grad_A += torch.mul(q, step_chunk, out=work.spare()).sum((0, 1))
            grad_w += torch.mul(r, step_chunk, out=work.spare()).sum((0, 1))
            grad_step[:, times] = q.mul_(rates).addcmul_(r, angles).sum(-2).flatten(2).transpose(0, 1)
        grad_step.addcmul_(grad_driven, x)
        torch.mul(grad_driven, step, out=grad_u[rows])
        if D is not None and grad_D is not None:
            grad_u[rows].addcmul_(grad, D.to(dtype))
            grad_D += (grad * x).sum((0, 1))
        grad_step.mul_(softplus_slope(biased_steps(delta[rows], delta_bias, dtype)))
        if grad_bias is not None:
            grad_bias += grad_step.sum((0, 1))
    return (
        grad_u.to(u.dtype),
        grad_delta.to(delta.dtype),
        _ungrouped(grad_A).to(A.dtype),
        _ungrouped(grad_w).to(w.dtype),
        grad_B.to(B.dtype),
        grad_C.to(C.dtype),
        u.new_empty(0) if D is None or grad_D is None else grad_D.to(D.dtype),
        u.new_empty(0) if delta_bias is None or grad_bias is None else grad_bias.to(delta_bias.dtype),
    )


class _Steps(NamedTuple):
    """Views of a buffer's steps: both planes, the first one with its axis, real and imaginary parts."""

    both: tuple[Tensor, ...]
    first: tuple[Tensor, ...]
    real: tuple[Tensor, ...]
    imaginary: tuple[Tensor, ...]


class _Work:
    """Room for the turns, states and adjoints of a chunk, (steps, rows, groups, 2 pairs, channels), used again and again."""

    def __init__(
        self, rates: Tensor, angles: Tensor, rows: int, num_buffers: int, token_shape: torch.Size
    ) -> None:
        groups, pairs, channels = rates.shape
        self.rates, self.angles, self.pairs = rates * LOG2_E, angles, pairs
        room = (CHUNK, rows, groups, 2 * pairs, channels)
        found = scratch(
            rates, *[room] * num_buffers, *[(rows, *token_shape)] * (2 if num_buffers == 2 else 3)
        )
        self._turns, self._states, *others = found[:num_buffers]
        self._adjoints, self._turned_back = others if others else (self._turns, self._states)
        self.tokens = found[num_buffers:]
        self._size = (0, 0)
        self._views: dict[tuple[Tensor, int, int], _Steps] = {}

    def _view(self, buffer: Tensor) -> Tensor:
        steps, rows = self._size
        return buffer[:steps, :rows]

    def _planes(self, buffer: Tensor) -> Tensor:
        """Views a buffer as (steps, rows, groups, 2, pairs, channels)."""
        return self._view(buffer).unflatten(3, (2, self.pairs))

    def trajectory(
        self, step: Tensor, driven: Tensor, b: Tensor, h: Tensor, times: slice, reverse: bool
    ) -> Tensor:
        """Computes turns and states of a chunk; returns the states."""
        groups = b.shape[2]
        delta = _per_channel(step, times, groups).unsqueeze(-2)
        self._size = (delta.shape[0], delta.shape[1])
        cosines, sines = self._planes(self._turns).unbind(3)
        size, angle = self._planes(self._states).unbind(3)
        torch.mul(delta, self.rates, out=size).exp2_()
        torch.mul(delta, self.angles, out=angle)
        torch.cos(angle, out=cosines).mul_(size)
        torch.sin(angle, out=sines).mul_(size)
        states = self._view(self._states)
        torch.mul(_per_channel(driven, times, groups).unsqueeze(-2), _of(b, times).unsqueeze(-1), out=states)
        now, turn = self._steps(self._states), self._steps(self._turns)
        real, imaginary = h[:, :, 0], h[:, :, 1]
        for t in self._order(reverse):
            now.both[t].addcmul_(turn.first[t], h)
            now.real[t].addcmul_(turn.imaginary[t], imaginary, value=-1.0)
            now.imaginary[t].addcmul_(turn.imaginary[t], real)
            h, real, imaginary = now.both[t], now.real[t], now.imaginary[t]
        return states

    def adjoints(self, c: Tensor, grad: Tensor, carried: Tensor | None, reverse: bool) -> Tensor:
        """Computes the adjoint states g of the chunk whose turns are here, and s_t = R_tᵀ g_t, which go to the step before."""
        adjoints = self._view(self._adjoints)
        torch.mul(c.unsqueeze(-1), grad.unsqueeze(-2), out=adjoints)
        now, back, turn = (self._steps(buffer) for buffer in (self._adjoints, self._turned_back, self._turns))
        for t in reversed(self._order(reverse)):
            if carried is not None:
                now.both[t].add_(carried)
            carried = torch.mul(turn.first[t], now.both[t], out=back.both[t])
            back.real[t].addcmul_(turn.imaginary[t], now.imaginary[t])
            back.imaginary[t].addcmul_(turn.imaginary[t], now.real[t], value=-1.0)
        return adjoints

    def carried(self, reverse: bool) -> Tensor:
        """Copies what the adjoint states of this chunk are for the chunk before."""
        return self._steps(self._turned_back).both[self._order(reverse)[0]].clone()

    def slopes(self, start: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        """Computes q and r of :func:`backward` from s and the states before each step; overwrites the turns."""
        s, states = (self._planes(buffer) for buffer in (self._turned_back, self._states))
        q, r = self._planes(self._turns).unbind(3)
        last = self._size[0] - 1
        edge = last if reverse else 0
        later, before = (slice(0, last), slice(1, None)) if reverse else (slice(1, None), slice(0, last))
        for steps, h in ((later, states[before]), (slice(edge, edge + 1), start.unsqueeze(0))):
            real, imaginary = h.unbind(3)
            s_real, s_imaginary = s[steps].unbind(3)
            torch.mul(s_real, real, out=q[steps]).addcmul_(s_imaginary, imaginary)
            torch.mul(s_imaginary, real, out=r[steps]).addcmul_(s_real, imaginary, value=-1.0)
        return q, r

    def spare(self) -> Tensor:
        """Room for one number a pair, where the states were."""
        return self._planes(self._states).select(3, 0)

    def _steps(self, buffer: Tensor) -> _Steps:
        """Views the steps of a chunk one by one; the views, as costly as the arithmetic, are made once."""
        key = (buffer, *self._size)
        if key not in self._views:
            planes = self._planes(buffer)
            parts = (planes, planes[:, :, :, :1], planes.select(3, 0), planes.select(3, 1))
            self._views[key] = _Steps(*(part.unbind(0) for part in parts))
        return self._views[key]

    def _order(self, reverse: bool) -> list[int]:
        steps = range(self._size[0])
        return list(reversed(steps)) if reverse else list(steps)


def _chunks(length: int, reverse: bool) -> list[tuple[int, slice]]:
    """Cuts the sequence into chunks, numbered and listed in scan order."""
    starts = range(0, length, CHUNK)
    return [
        (number, slice(first, min(first + CHUNK, length)))
        for number, first in enumerate(reversed(starts) if reverse else starts)
    ]


def doubled(matrix: Tensor) -> Tensor:
    """Turns (…, 2 pairs) of real and imaginary parts c into (2 Re c, −2 Im c); the map is its own transpose."""
    real, imaginary = matrix.chunk(2, dim=-1)
    return torch.cat([real * 2.0, imaginary * -2.0], dim=-1)


def _of(matrix: Tensor, times: slice) -> Tensor:
    """Views B or C as (steps, rows, groups, 2 pairs) for a chunk."""
    return matrix[:, times].transpose(0, 1)


def _per_channel(values: Tensor, times: slice, groups: int) -> Tensor:
    """Views (rows, length, d_inner) as (steps, rows, groups, channels) for a chunk."""
    return values[:, times].unflatten(-1, (groups, -1)).transpose(0, 1)


def _ungrouped(matrix: Tensor) -> Tensor:
    """Turns (groups, pairs, channels) into (d_inner, pairs)."""
    return matrix.transpose(1, 2).flatten(0, 1)
