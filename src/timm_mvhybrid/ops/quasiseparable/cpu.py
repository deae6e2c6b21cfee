"""Hydra's quasiseparable matrix in chunks, both directions in one product; plain torch, on any device.

Token i receives from tokens j < i what the forward scan holds at i − 1, and from j > i what the backward scan holds at
i + 1. With log-decays l cumulated in a chunk, q_i = Σ_{k≤i} l_k and p_i = q_i − l_i, the chunk's matrix of a head is::

    M_ij = (C_{i−1} · B_j) exp(p_i − q_j) δ_j      j < i, forward direction
    M_ii = diagonal_i
    M_ij = (C_{i+1} · B_j) exp(p_j − q_i) δ_j      j > i, backward direction

so that one product with x serves both directions. Between chunks each direction carries a state, as in ``ssd.cpu``,
which also explains the chunks and the two parts of a decay. A direction's first chunk receives no state and its last
one passes none on; neither is computed.

Layouts: numbers of a step are (2, rows, chunks, heads, steps), forward direction first; tokens are head-major, (rows,
chunks, heads, steps, headdim), where the steps of a chunk mix; states and what makes them share B and C among the heads
of a group and are (rows, chunks − 1, groups, d_state or steps, heads a group · headdim). Source: Hwang et al. (arXiv
2407.09941), section 4, and Dao and Gu (arXiv 2405.21060), section 6; the form for both directions is ours.
"""

import torch
from torch import Tensor

from ..precision import accumulation_dtype
from ..ssd.cpu import num_chunks
from ..workspace import cut_batch
from .inputs import Inputs
from .layout import (
    PART_ELEMENTS,
    Rooms,
    add_group_tokens,
    carried_chunks,
    group_matrices,
    group_tokens,
    head_major,
    token_major,
)
from .steps import Sizes, Steps, by_step, sizes, step_numbers


def saved_shape(x: Tensor, B: Tensor, save_states: bool) -> list[int]:
    """Shape of the states that :func:`forward` returns."""
    batch, length, heads, headdim = x.shape
    return [2, num_chunks(length) - 1, batch if save_states else 0, heads, headdim, B.shape[-1]]


def forward(inputs: Inputs, save_states: bool) -> tuple[Tensor, Tensor]:
    """Multiplies tokens by the matrix.

    Returns:
        y in the dtype of ``x``, (batch, length, heads, headdim); and the states between the chunks, of the shape
        (2, chunks − 1, batch, heads, headdim, d_state) but in the layout of this module, in the accumulation dtype.
        Without ``save_states`` the latter have no elements.
    """
    x, dt, A, B, C, dt_bias, diagonal = inputs
    dtype = accumulation_dtype(x.dtype)
    size = sizes(x, B)
    y = x.new_empty(x.shape)
    states = x.new_empty(2, size.batch if save_states else 0, *size.states, dtype=dtype)
    steps = step_numbers(dt, A, dt_bias, size, dtype)
    on_diagonal = by_step(diagonal.to(dtype), size)
    reach = reachable(x, size.steps, dtype)
    parts, rows = cut_batch(x, PART_ELEMENTS)
    rooms = Rooms(
        steps.step,
        {
            "x": (rows, *size.tokens),
            "out": (rows, *size.tokens),
            "pairs": (2, rows, size.chunks, size.heads, size.steps, size.steps),
            "scores": (2, rows, size.chunks, size.groups, size.steps, size.steps),
            "B": (2, rows, *size.matrices),
            "C": (2, rows, *size.matrices),
            "group_tokens": (rows, *size.group_tokens),
            "states": (0 if save_states else rows, *size.states),
        },
    )
    for part in parts:
        count = part.stop - part.start
        tokens = head_major(x[part], rooms.take("x", count, *size.tokens))
        b, c = group_matrices(B[part], C[part], size, rooms)
        scores = pair_scores(b, c, rooms)
        pairs = pair_decays(steps, part, reach, size, rooms)
        mixing = pairs[0].mul_(scores[0]).addcmul_(pairs[1], scores[1])
        write_diagonal(mixing, on_diagonal[part])
        out = rooms.take("out", count, *size.tokens)
        torch.bmm(mixing.flatten(0, 3), tokens.flatten(0, 2), out=out.flatten(0, 2))
        for direction in range(2 if size.chunks > 1 else 0):
            feeding, reached = carried_chunks(direction)
            driven = group_tokens(
                tokens[:, feeding],
                steps.entering[direction, part, feeding],
                rooms.take("group_tokens", count, *size.group_tokens),
            )
            state = states[direction, part] if save_states else rooms.take("states", count, *size.states)
            torch.bmm(
                b[direction, :, feeding].flatten(0, 2).mT, driven.flatten(0, 2), out=state.flatten(0, 2)
            )
            carry(state, steps.total[direction, part, 1:-1], direction == 1)
            # into the room of what made the states
            torch.bmm(c[direction, :, reached].flatten(0, 2), state.flatten(0, 2), out=driven.flatten(0, 2))
            add_group_tokens(out[:, reached], driven, steps.leaving[direction, part, reached])
        token_major(out, y[part])
    return y, states.view(saved_shape(x, B, save_states))


def reachable(x: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Zero where step j of a direction reaches token i of its chunk, −∞ elsewhere: (2, 1, 1, 1, steps, steps)."""
    barred = x.new_full((steps, steps), -torch.inf, dtype=dtype)
    return torch.stack([barred.triu(), barred.tril()]).view(2, 1, 1, 1, steps, steps)


def pair_scores(b: Tensor, c: Tensor, rooms: Rooms) -> Tensor:
    """Computes C_i · B_j of both directions, (2, rows, chunks, groups, 1, steps, steps)."""
    steps = b.shape[-2]
    scores = rooms.take("scores", *b.shape[:4], steps, steps)
    torch.bmm(c.flatten(0, 3), b.flatten(0, 3).mT, out=scores.flatten(0, 3))
    return scores.unsqueeze(4)


def pair_decays(steps: Steps, rows: slice, reach: Tensor, size: Sizes, rooms: Rooms) -> Tensor:
    """Computes the decays between the steps of a chunk, times δ: (2, rows, chunks, groups, heads a group, i, j)."""
    row, column = steps.row[:, rows].unsqueeze(-1), steps.column[:, rows].unsqueeze(-2)
    pairs = rooms.take("pairs", *row.shape[:-1], size.steps)
    torch.sub(row, column, out=pairs).add_(reach).exp2_()
    pairs.mul_(steps.row_factor[:, rows].unsqueeze(-1)).mul_(steps.column_factor[:, rows].unsqueeze(-2))
    return pairs.unflatten(3, (size.groups, -1))


def write_diagonal(mixing: Tensor, values: Tensor) -> None:
    """Writes (rows, chunks, heads, steps) onto the diagonals of (rows, chunks, groups, heads a group, i, j)."""
    mixing.flatten(2, 3).diagonal(dim1=-2, dim2=-1).copy_(values)


def carry(states: Tensor, total: Tensor, from_last: bool) -> None:
    """Adds to what each chunk passes on, in place, what the chunks before it left.

    Args:
        states: (rows, chunks − 1, groups, d_state, heads a group · headdim).
        total: What the chunks between two states leave of the first, (rows, chunks − 2, heads).
        from_last: Whether the last state is the first.
    """
    rows, gaps, heads = total.shape
    groups = states.shape[2]
    factors = total.view(rows, gaps, groups, 1, heads // groups, 1).unbind(1)
    each = states.unflatten(-1, (heads // groups, -1)).unbind(1)
    for gap in reversed(range(gaps)) if from_last else range(gaps):
        source, target = (gap + 1, gap) if from_last else (gap, gap + 1)
        each[target].addcmul_(each[source], factors[gap])
