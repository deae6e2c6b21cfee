"""The gradient of ``cpu``: M_ij's terms are rebuilt, and the states are those that forward saved.

With the gradient G_ij of M_ij and the terms T_ij = G_ij M_ij of a direction, the rows of T are summed for the exponent
of the receiving token i, and its columns for that of the sending step j; both meet in the log-decays. What passes
between chunks is differentiated alike. Sums over a head's channels or tokens that meet there run in float64.
"""

import math

import torch
from torch import Tensor

from ..precision import accumulation_dtype
from ..step_sizes import softplus_slope
from ..workspace import cut_batch
from .cpu import carry, pair_decays, pair_scores, reachable, write_diagonal
from .inputs import Gradients, Inputs
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


def backward(grad_y: Tensor, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`.cpu.forward`.

    Args:
        grad_y: Gradient of y, (batch, length, heads, headdim).
        states: What forward returned with ``save_states``.
        inputs: As for forward.
    """
    x, dt, A, B, C, dt_bias, diagonal = inputs
    dtype = accumulation_dtype(x.dtype)
    size = sizes(x, B)
    states = states.view(2, size.batch, *size.states)
    grad_x, grad_B, grad_C = (m.new_empty(m.shape) for m in (x, B, C))
    steps = step_numbers(dt, A, dt_bias, size, dtype)
    on_diagonal = by_step(diagonal.to(dtype), size)
    grad_on_diagonal = x.new_empty(on_diagonal.shape, dtype=dtype)
    # of the exponents of what a token receives and of what a step sends, in units of the natural logarithm
    grad_row, grad_column = (x.new_empty(steps.step.shape, dtype=torch.float64) for _ in range(2))
    grad_total = x.new_zeros(steps.total.shape, dtype=torch.float64)
    reach = reachable(x, size.steps, dtype)
    parts, rows = cut_batch(x, PART_ELEMENTS)
    pairs_shape = (rows, size.chunks, size.heads, size.steps, size.steps)
    rooms = Rooms(
        steps.step,
        {
            **dict.fromkeys(("x", "grad_y", "grad_x"), (rows, *size.tokens)),
            **dict.fromkeys(("mixing", "grad_mixing"), pairs_shape),
            "pairs": (2, *pairs_shape),
            "wide": (2, max(2 * math.prod(pairs_shape), rows * math.prod(size.group_tokens))),
            "scores": (2, rows, size.chunks, size.groups, size.steps, size.steps),
            **dict.fromkeys(("B", "C", "grad_B", "grad_C"), (2, rows, *size.matrices)),
            **dict.fromkeys(("driven", "carried"), (rows, *size.group_tokens)),
            **dict.fromkeys(("grad_states", "crossing"), (rows, *size.states)),
        },
    )
    for part in parts:
        count = part.stop - part.start
        shape = (count, *size.tokens)
        tokens = head_major(x[part], rooms.take("x", *shape))
        grad_out = head_major(grad_y[part], rooms.take("grad_y", *shape))
        b, c = group_matrices(B[part], C[part], size, rooms)
        scores = pair_scores(b, c, rooms)
        pairs = pair_decays(steps, part, reach, size, rooms)
        mixing, grad_mixing = (rooms.take(name, *pairs.shape[1:]) for name in ("mixing", "grad_mixing"))
        torch.mul(pairs[0], scores[0], out=mixing).addcmul_(pairs[1], scores[1])
        write_diagonal(mixing, on_diagonal[part])
        grad_tokens = rooms.take("grad_x", *shape)
        torch.bmm(mixing.flatten(0, 3).mT, grad_out.flatten(0, 2), out=grad_tokens.flatten(0, 2))
        torch.bmm(grad_out.flatten(0, 2), tokens.flatten(0, 2).mT, out=grad_mixing.flatten(0, 3))
        grad_on_diagonal[part] = grad_mixing.flatten(2, 3).diagonal(dim1=-2, dim2=-1)

        grad_scores = pairs.mul_(grad_mixing).sum(4).flatten(0, 3)
        terms = pairs.mul_(scores).flatten(3, 4)
        wide = _in_float64(terms, rooms)
        grad_row[:, part] = wide.sum(-1)
        grad_column[:, part] = wide.sum(-2)
        grad_b, grad_c = (rooms.take(name, *b.shape) for name in ("grad_B", "grad_C"))
        torch.bmm(grad_scores.mT, c.flatten(0, 3), out=grad_b.flatten(0, 3))
        torch.bmm(grad_scores, b.flatten(0, 3), out=grad_c.flatten(0, 3))
        for direction in range(2 if size.chunks > 1 else 0):
            _between_chunks(
                direction,
                part,
                steps,
                size,
                rooms,
                states[direction, part],
                (tokens, grad_out, b[direction], c[direction]),
                (grad_tokens, grad_b[direction], grad_c[direction]),
                (grad_row[direction, part], grad_column[direction, part], grad_total[direction, part]),
            )
        token_major(grad_tokens, grad_x[part])
        _write_matrices(grad_b, grad_c, grad_B[part], grad_C[part])
    grad_dt, grad_A = _through_steps(grad_row, grad_column, grad_total, steps, A, size)
    grad_diagonal = diagonal.new_empty(diagonal.shape)
    grad_diagonal.copy_(grad_on_diagonal.movedim(-1, 2).flatten(1, 2)[:, : size.length])
    return (
        grad_x,
        grad_dt.to(dt.dtype),
        grad_A.to(A.dtype),
        grad_B,
        grad_C,
        grad_dt.sum((0, 1, 2)).to(dt_bias.dtype),
        grad_diagonal,
    )


def _between_chunks(
    direction: int,
    part: slice,
    steps: Steps,
    size: Sizes,
    rooms: Rooms,
    states: Tensor,
    values: tuple[Tensor, Tensor, Tensor, Tensor],
    grads: tuple[Tensor, Tensor, Tensor],
    grad_numbers: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Adds the gradients of what a direction carries from chunk to chunk.

    Args:
        direction: 0 forward, 1 backward.
        part: Rows of the batch.
        steps: Numbers of the whole batch.
        size: Sizes of the call.
        rooms: Scratch memory.
        states: The direction's, (rows, chunks − 1, groups, d_state, heads a group · headdim).
        values: Tokens and gradient of y, head-major, and the direction's B and C.
        grads: Gradients of x, head-major, B and C; added to.
        grad_numbers: Gradients of the exponents of rows and columns, added to, and of the log-decays over whole chunks,
            written; (rows, chunks, heads, steps), the last without steps.
    """
    tokens, grad_out, b, c = values
    grad_tokens, grad_b, grad_c = grads
    grad_row, grad_column, grad_total = grad_numbers
    feeding, reached = carried_chunks(direction)
    count = part.stop - part.start
    driven, carried = (rooms.take(name, count, *size.group_tokens) for name in ("driven", "carried"))
    grad_states = rooms.take("grad_states", count, *size.states)
    leaving, entering = steps.leaving[direction, part, reached], steps.entering[direction, part, feeding]
    total = steps.total[direction, part, 1:-1]

    grad_received = group_tokens(grad_out[:, reached], leaving, driven)
    read = c[:, reached].flatten(0, 2)
    torch.bmm(read.mT, grad_received.flatten(0, 2), out=grad_states.flatten(0, 2))
    torch.bmm(read, states.flatten(0, 2), out=carried.flatten(0, 2))
    from_start = _head_sums(carried.mul_(grad_received), size, rooms)
    grad_row[:, reached] += from_start
    _add_product(grad_c[:, reached], grad_received, states.mT)

    carry(grad_states, total, direction == 0)
    # the states before and after the chunks that a state crosses
    before, after = (
        (states[:, 1:], grad_states[:, :-1]) if direction else (states[:, :-1], grad_states[:, 1:])
    )
    product = torch.mul(before, after, out=rooms.take("crossing", *before.shape))
    crossing = product.sum(-2, dtype=torch.float64).unflatten(-1, (-1, size.headdim)).sum(-1)
    grad_total[:, 1:-1] = crossing.flatten(2) * total

    sent = group_tokens(tokens[:, feeding], entering, driven)
    torch.bmm(b[:, feeding].flatten(0, 2), grad_states.flatten(0, 2), out=carried.flatten(0, 2))
    _add_product(grad_b[:, feeding], sent, grad_states.mT)
    add_group_tokens(grad_tokens[:, feeding], carried, entering)
    to_end = _head_sums(carried.mul_(sent), size, rooms)
    grad_column[:, feeding] += to_end
    # a chunk's whole log-decay is in what reaches its far end
    if direction:
        grad_total[:, reached] += from_start.sum(-1)
    else:
        grad_total[:, feeding] += to_end.sum(-1)


def _in_float64(terms: Tensor, rooms: Rooms) -> Tensor:
    """Widens terms that are to be summed; ``sum`` would do so in fresh memory, once for every sum."""
    if terms.dtype == torch.float64:
        return terms
    # two float32 numbers make room for one
    return rooms.take("wide", 2 * terms.numel()).view(torch.float64).view(terms.shape).copy_(terms)


def _through_steps(
    grad_row: Tensor, grad_column: Tensor, grad_total: Tensor, steps: Steps, A: Tensor, size: Sizes
) -> tuple[Tensor, Tensor]:
    """Turns gradients of exponents into those of the raw step sizes, (batch, length, 2, heads), and of A."""
    # forward rows hold p and columns q, backward rows −q and columns −p
    grad_before = torch.stack([grad_row[0], grad_column[1]])
    grad_until = torch.stack([grad_column[0], grad_row[1]]).neg_()
    grad_until[..., -1] += grad_total
    # each log-decay gathers the gradients of all sums that it is in
    grad_rate = (grad_until + grad_before).flip(-1).cumsum(-1).flip(-1) - grad_before
    step, slope = steps.step.double(), softplus_slope(steps.biased.double())
    grad_A = (grad_rate * step).sum((0, 1, 2, 4))
    # what a step sends is proportional to δ; a δ that underflowed to zero has sent nothing
    grad_step = grad_rate * A.double().unsqueeze(-1) + grad_column / step.masked_fill(step == 0, 1.0)
    grad_dt = (grad_step * slope).permute(1, 2, 4, 0, 3).flatten(1, 2)
    return grad_dt[:, : size.length], grad_A


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b to (rows, chunks − 1, groups, steps, d_state)."""
    total += torch.bmm(a.flatten(0, 2), b.flatten(0, 2)).view(total.shape)


def _head_sums(values: Tensor, size: Sizes, rooms: Rooms) -> Tensor:
    """Sums (rows, chunks, groups, steps, heads a group · headdim) over headdim: (rows, chunks, heads, steps)."""
    sums = _in_float64(values, rooms).unflatten(-1, (-1, size.headdim)).sum(-1)
    return sums.transpose(3, 4).flatten(2, 3)


def _write_matrices(grad_b: Tensor, grad_c: Tensor, grad_B: Tensor, grad_C: Tensor) -> None:
    """Inverts :func:`.cpu.group_matrices`: the gradient of C is shifted back, and one step of each has none."""
    length = grad_B.shape[1]
    by_token = [m.transpose(3, 4).flatten(2, 3) for m in (grad_b, grad_c)]
    grad_B.copy_(by_token[0][:, :, :length].permute(1, 2, 0, 3, 4))
    grad_C[:, :-1, 0] = by_token[1][0, :, 1:length]
    grad_C[:, -1, 0] = 0
    grad_C[:, 1:, 1] = by_token[1][1, :, : length - 1]
    grad_C[:, 0, 1] = 0
