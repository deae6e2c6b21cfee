"""Four steps of the fused state-space-duality scan: their numbers, rows and channels, and products of these."""

from typing import Any

from numba import njit

from ..fused.lanes import LANES, load, load_integer, load_number, size_of, spread, store, store_number, total
from ..fused.tiles import fill_tile, load_tokens
from .cpu import CHUNK

STEPS = 4
PAIRS = 10  # of steps j ≤ i
QUADS = -(-CHUNK // STEPS)  # of a chunk
LENGTH = 3  # its place among the arguments of a kernel


@njit
def dot(a: int, b: int, real: Any, count: int) -> Any:
    """Multiplies two rows of numbers and adds up."""
    size = size_of(real)
    lanes = spread(real)
    whole = count // LANES * LANES
    for n in range(0, whole, LANES):
        lanes = lanes + load(a + n * size, real) * load(b + n * size, real)
    rest = total(lanes)
    for n in range(whole, count):
        rest = rest + load_number(a + n * size, real) * load_number(b + n * size, real)
    return rest


@njit
def four_numbers(
    address: int, real: Any, stride: int, count: int, otherwise: Any
) -> tuple[Any, Any, Any, Any]:
    """Reads the numbers of up to four steps; of a step after the end it takes the other."""
    return (
        load_number(address, real),
        load_number(address + stride, real) if count > 1 else otherwise,
        load_number(address + 2 * stride, real) if count > 2 else otherwise,
        load_number(address + 3 * stride, real) if count > 3 else otherwise,
    )


@njit
def four_places(address: int, stride: int, count: int) -> tuple[int, int, int, int]:
    """Where rows of up to four steps are; of a step after the end any that is there."""
    return (
        address,
        address + (stride if count > 1 else 0),
        address + (2 * stride if count > 2 else 0),
        address + (3 * stride if count > 3 else 0),
    )


@njit
def write_scores(scores: int, real: Any, b: int, c: int, stride: int, states: int, steps: int) -> None:
    """Writes C_i · B_j of each four steps; ``stride`` is the bytes from a step to the next, steps after the end the last."""
    size = size_of(real)
    for first in range(0, steps, STEPS):
        for i in range(STEPS):
            at_i = c + min(first + i, steps - 1) * stride
            for j in range(i + 1):
                at_j = b + min(first + j, steps - 1) * stride
                store_number(scores, dot(at_i, at_j, real, states))
                scores += size


@njit
def dot_tiles(a: int, b: int, real: Any, blocks: int) -> Any:
    """Multiplies two rows of blocks and adds up."""
    row = LANES * size_of(real)
    lanes = spread(real)
    for block in range(blocks):
        lanes = lanes + load(a + block * row, real) * load(b + block * row, real)
    return total(lanes)


@njit
def load_steps(
    p: int,
    place: int,
    tile: int,
    real: Any,
    image: int,
    first: int,
    sign: int,
    count: int,
    channel: int,
    headdim: int,
) -> None:
    """Reads a head's channels of up to four steps, a row of blocks each; what is outside of the sequence is 0."""
    row = LANES * size_of(real)
    blocks = (headdim + LANES - 1) // LANES
    length = load_integer(p + 8 * LENGTH)
    fill_tile(tile, real, STEPS * blocks, real)
    for i in range(count):
        t = first + sign * i
        if 0 <= t < length:
            for block in range(blocks):
                width = min(LANES, headdim - block * LANES)
                here = tile + (i * blocks + block) * row
                load_tokens(p, place, here, real, image, t, 1, channel + block * LANES, width)


@njit
def add_multiple(target: int, source: int, real: Any, factor: Any, count: int) -> None:
    """Adds a row of numbers, times a factor, to another."""
    size = size_of(real)
    whole = count // LANES * LANES
    for n in range(0, whole, LANES):
        store(
            target + n * size, load(target + n * size, real) + spread(factor) * load(source + n * size, real)
        )
    for n in range(whole, count):
        here = target + n * size
        store_number(here, load_number(here, real) + factor * load_number(source + n * size, real))


@njit
def add_outer_products(
    sums: int,
    real: Any,
    states: int,
    state: int,
    adjoint: int,
    received: int,
    sent: int,
    stride: int,
    beside: int,
) -> None:
    """Adds λ times what was sent, then h times what was received, of each step; of two blocks, if one is ``beside``."""
    row = LANES * size_of(real)
    r0, r1 = load(received, real), load(received + stride, real)
    r2, r3 = load(received + 2 * stride, real), load(received + 3 * stride, real)
    w0, w1 = load(sent, real), load(sent + stride, real)
    w2, w3 = load(sent + 2 * stride, real), load(sent + 3 * stride, real)
    if beside:
        received, sent = received + beside, sent + beside
        r4, r5 = load(received, real), load(received + stride, real)
        r6, r7 = load(received + 2 * stride, real), load(received + 3 * stride, real)
        w4, w5 = load(sent, real), load(sent + stride, real)
        w6, w7 = load(sent + 2 * stride, real), load(sent + 3 * stride, real)
        other = states * row
        for _n in range(states):
            h, later = load(state, real), load(adjoint, real)
            h_other, later_other = load(state + other, real), load(adjoint + other, real)
            store(sums, load(sums, real) + w0 * later + w4 * later_other)
            store(sums + row, load(sums + row, real) + w1 * later + w5 * later_other)
            store(sums + 2 * row, load(sums + 2 * row, real) + w2 * later + w6 * later_other)
            store(sums + 3 * row, load(sums + 3 * row, real) + w3 * later + w7 * later_other)
            store(sums + 4 * row, load(sums + 4 * row, real) + r0 * h + r4 * h_other)
            store(sums + 5 * row, load(sums + 5 * row, real) + r1 * h + r5 * h_other)
            store(sums + 6 * row, load(sums + 6 * row, real) + r2 * h + r6 * h_other)
            store(sums + 7 * row, load(sums + 7 * row, real) + r3 * h + r7 * h_other)
            sums, state, adjoint = sums + 2 * STEPS * row, state + row, adjoint + row
    else:
        for _n in range(states):
            h, later = load(state, real), load(adjoint, real)
            store(sums, load(sums, real) + w0 * later)
            store(sums + row, load(sums + row, real) + w1 * later)
            store(sums + 2 * row, load(sums + 2 * row, real) + w2 * later)
            store(sums + 3 * row, load(sums + 3 * row, real) + w3 * later)
            store(sums + 4 * row, load(sums + 4 * row, real) + r0 * h)
            store(sums + 5 * row, load(sums + 5 * row, real) + r1 * h)
            store(sums + 6 * row, load(sums + 6 * row, real) + r2 * h)
            store(sums + 7 * row, load(sums + 7 * row, real) + r3 * h)
            sums, state, adjoint = sums + 2 * STEPS * row, state + row, adjoint + row


@njit
def add_pair_products(
    pairs: int, real: Any, b: int, c: int, grad_b: int, grad_c: int, stride: int, states: int, steps: int
) -> None:
    """Adds to the gradients of C_i and B_j the other's row times the number of their pair, of each four steps."""
    for k in range(0, steps, STEPS):
        for i in range(STEPS):
            for j in range(i + 1):
                if k + i < steps:
                    factor = load_number(pairs, real)
                    at_i, at_j = (k + i) * stride, (k + j) * stride
                    add_multiple(grad_c + at_i, b + at_j, real, factor, states)
                    add_multiple(grad_b + at_j, c + at_i, real, factor, states)
                pairs += size_of(real)


@njit
def rebuild_states(
    p: int,
    x_place: int,
    starts: int,
    tile: int,
    real: Any,
    step: int,
    decay: int,
    head_stride: int,
    b: int,
    stride: int,
    image: int,
    first: int,
    sign: int,
    steps: int,
    channel: int,
    headdim: int,
    states: int,
) -> None:
    """Computes the states before each four steps of a chunk from those before its first, which are there.

    ``step`` and ``decay`` are where the first step's numbers are, ``b`` where its row is.
    """
    size = size_of(real)
    row = LANES * size
    blocks = (headdim + LANES - 1) // LANES
    for quad in range((steps + STEPS - 1) // STEPS - 1):
        at = quad * STEPS * head_stride
        d0, d1, d2, d3 = four_numbers(step + at, real, head_stride, STEPS, real)
        a0, a1, a2, a3 = four_numbers(decay + at, real, head_stride, STEPS, real)
        kept = spread(((a0 * a1) * a2) * a3)
        s0, s1, s2, s3 = spread(a1 * a2 * a3 * d0), spread(a2 * a3 * d1), spread(a3 * d2), spread(d3)
        b0, b1, b2, b3 = four_places(b + quad * STEPS * stride, stride, STEPS)
        load_steps(p, x_place, tile, real, image, first + sign * quad * STEPS, sign, STEPS, channel, headdim)
        for block in range(blocks):
            here = tile + block * row
            w0, w1 = load(here, real) * s0, load(here + blocks * row, real) * s1
            w2, w3 = load(here + 2 * blocks * row, real) * s2, load(here + 3 * blocks * row, real) * s3
            source = starts + (quad * blocks + block) * states * row
            target = source + blocks * states * row
            for n in range(states):
                number = n * size
                now = load(source + n * row, real) * kept + w0 * spread(load_number(b0 + number, real))
                now = now + w1 * spread(load_number(b1 + number, real))
                now = now + w2 * spread(load_number(b2 + number, real))
                store(target + n * row, now + w3 * spread(load_number(b3 + number, real)))
