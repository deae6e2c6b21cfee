"""The fused state-space-duality scan: one or two directions, a head's states in the first cache, four steps at a time.

With the decays a of four steps, their products e_i = a_0 … a_i and a_ij = a_{j+1} … a_i, and the state h before them::

    y_i = e_i C_i · h + Σ_{j≤i} (C_i · B_j) a_ij δ_j x_j
    h'  = e_3 h + Σ_j a_3j δ_j x_j ⊗ B_j

so that a state is read and written once for four steps, and decayed once. Products of decays are those that the plain
recurrence takes, so their roundings are its own. A task is a few heads of a row of the batch; the scores C_i · B_j of a
chunk are computed once for those of a group. Steps after the end have δ = 0 and a = 1.

A direction's output may be moved by ``SHIFT`` tokens along its time, and is added to what ``Y`` holds. A head's states
are (d_state, headdim), B and C (batch, length, directions, groups, d_state), δ and a (batch, length, directions, heads).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from ..fused.lanes import (
    LANES,
    load,
    load_integer,
    load_number,
    size_of,
    spread,
    store,
    take_next,
)
from ..fused.tiles import fill_tile, load_tokens, store_tile, store_tokens
from .cpu import CHUNK
from .numba_steps import PAIRS, QUADS, STEPS, four_numbers, four_places, write_scores

# places of the arguments; after that of a tensor of tokens are its bytes a number, a row of the batch and a token
(
    NEXT_TASK,
    NEXT_ROOM,
    BATCH,
    LENGTH,
    HEADS,
    HEADDIM,
    GROUPS,
    STATES,
    DIRECTIONS,
    REVERSE,
    SHIFT,
    SAVE,
    PARTS,
    STEP,
    DECAY,
    B,
    C,
    CHUNK_STATES,
    LAST_STATE,
    ROOM,
    ROOM_BYTES,
) = range(21)
X, Y = range(21, 29, 4)


def room_rows(states: int, blocks: int, part_heads: int) -> int:
    """Rows of ``LANES`` numbers that a thread needs, for this many blocks of channels a head and heads a task."""
    return part_heads * blocks * states + 2 * STEPS + QUADS * PAIRS


@njit
def scan(p: int, real: Any, one: Any) -> None:
    """Works off tasks until there is none left; ``real`` is a 0 of the type that is computed in, ``one`` a 1."""
    size = size_of(real)
    row = LANES * size
    batch, length = load_integer(p + 8 * BATCH), load_integer(p + 8 * LENGTH)
    heads, headdim = load_integer(p + 8 * HEADS), load_integer(p + 8 * HEADDIM)
    groups, states = load_integer(p + 8 * GROUPS), load_integer(p + 8 * STATES)
    directions, reverse = load_integer(p + 8 * DIRECTIONS), load_integer(p + 8 * REVERSE)
    shift, save = load_integer(p + 8 * SHIFT), load_integer(p + 8 * SAVE)
    parts = load_integer(p + 8 * PARTS)
    step_matrix, decay_matrix = load_integer(p + 8 * STEP), load_integer(p + 8 * DECAY)
    b_matrix, c_matrix = load_integer(p + 8 * B), load_integer(p + 8 * C)
    chunk_states, last_state = load_integer(p + 8 * CHUNK_STATES), load_integer(p + 8 * LAST_STATE)

    x_tile = load_integer(p + 8 * ROOM) + take_next(p + 8 * NEXT_ROOM) * load_integer(p + 8 * ROOM_BYTES)
    y_tile = x_tile + STEPS * row
    scores = y_tile + STEPS * row
    kept = scores + QUADS * PAIRS * row
    blocks = (headdim + LANES - 1) // LANES
    block_bytes = states * row
    head_bytes = blocks * block_bytes
    state_bytes = states * headdim * size
    group_heads = heads // groups
    part_heads = (heads + parts - 1) // parts
    num_chunks = (length + CHUNK - 1) // CHUNK
    task = take_next(p + 8 * NEXT_TASK)
    while task < batch * parts:
        image, part = task // parts, task % parts
        first_head = part * part_heads
        end_head = min(heads, first_head + part_heads)
        for direction in range(directions):
            backwards = reverse != direction
            sign = -1 if backwards else 1
            fill_tile(kept, real, (end_head - first_head) * blocks * states, real)
            for chunk in range(num_chunks):
                place = num_chunks - 1 - chunk if backwards else chunk
                steps = min(CHUNK, length - place * CHUNK)
                first = place * CHUNK + (steps - 1 if backwards else 0)
                token = (image * length + first) * directions + direction
                stride = sign * directions * groups * states * size
                head_stride = sign * directions * heads * size
                for head in range(first_head, end_head):
                    group = head // group_heads
                    matrix_offset = (token * groups + group) * states * size
                    if head == first_head or head % group_heads == 0:
                        write_scores(
                            scores,
                            real,
                            b_matrix + matrix_offset,
                            c_matrix + matrix_offset,
                            stride,
                            states,
                            steps,
                        )
                    h = kept + (head - first_head) * head_bytes
                    if save:
                        target = ((direction * num_chunks + chunk) * batch + image) * heads + head
                        target = chunk_states + target * state_bytes
                        for block in range(blocks):
                            width = min(LANES, headdim - block * LANES)
                            store_tile(
                                h + block * block_bytes,
                                real,
                                states,
                                target + block * row,
                                headdim * size,
                                size,
                                width,
                            )
                    for quad in range((steps + STEPS - 1) // STEPS):
                        k = quad * STEPS
                        count = min(STEPS, steps - k)
                        numbers = (token * heads + head) * size + k * head_stride
                        d0, d1, d2, d3 = four_numbers(step_matrix + numbers, real, head_stride, count, real)
                        a0, a1, a2, a3 = four_numbers(decay_matrix + numbers, real, head_stride, count, one)
                        a20, a31 = a1 * a2, a2 * a3
                        a30 = a20 * a3
                        e1 = a0 * a1
                        e2 = e1 * a2
                        e3 = e2 * a3
                        q = scores + quad * PAIRS * size
                        m00 = spread(load_number(q, real) * d0)
                        m10 = spread(load_number(q + size, real) * (a1 * d0))
                        m11 = spread(load_number(q + 2 * size, real) * d1)
                        m20 = spread(load_number(q + 3 * size, real) * (a20 * d0))
                        m21 = spread(load_number(q + 4 * size, real) * (a2 * d1))
                        m22 = spread(load_number(q + 5 * size, real) * d2)
                        m30 = spread(load_number(q + 6 * size, real) * (a30 * d0))
                        m31 = spread(load_number(q + 7 * size, real) * (a31 * d1))
                        m32 = spread(load_number(q + 8 * size, real) * (a3 * d2))
                        m33 = spread(load_number(q + 9 * size, real) * d3)
                        f0, f1, f2, f3 = spread(a0), spread(e1), spread(e2), spread(e3)
                        s0, s1, s2, s3 = spread(a30 * d0), spread(a31 * d1), spread(a3 * d2), spread(d3)
                        offset = matrix_offset + k * stride
                        b0, b1, b2, b3 = four_places(b_matrix + offset, stride, count)
                        c0, c1, c2, c3 = four_places(c_matrix + offset, stride, count)
                        for block in range(blocks):
                            width = min(LANES, headdim - block * LANES)
                            channel = head * headdim + block * LANES
                            if count < STEPS:
                                fill_tile(x_tile, real, STEPS, real)
                            for i in range(count):
                                load_tokens(
                                    p,
                                    X,
                                    x_tile + i * row,
                                    real,
                                    image,
                                    first + sign * (k + i),
                                    1,
                                    channel,
                                    width,
                                )
                            x0, x1 = load(x_tile, real), load(x_tile + row, real)
                            x2, x3 = load(x_tile + 2 * row, real), load(x_tile + 3 * row, real)
                            w0, w1, w2, w3 = x0 * s0, x1 * s1, x2 * s2, x3 * s3
                            y0 = y1 = y2 = y3 = spread(real)
                            here = h + block * block_bytes
                            for n in range(states):
                                number = n * size
                                before = load(here, real)
                                y0 = y0 + before * spread(load_number(c0 + number, real))
                                y1 = y1 + before * spread(load_number(c1 + number, real))
                                y2 = y2 + before * spread(load_number(c2 + number, real))
                                y3 = y3 + before * spread(load_number(c3 + number, real))
                                now = before * f3 + w0 * spread(load_number(b0 + number, real))
                                now = now + w1 * spread(load_number(b1 + number, real))
                                now = now + w2 * spread(load_number(b2 + number, real))
                                store(here, now + w3 * spread(load_number(b3 + number, real)))
                                here += row
                            store(y_tile, y0 * f0 + m00 * x0)
                            store(y_tile + row, y1 * f1 + m10 * x0 + m11 * x1)
                            store(y_tile + 2 * row, y2 * f2 + m20 * x0 + m21 * x1 + m22 * x2)
                            store(y_tile + 3 * row, y3 * f3 + m30 * x0 + m31 * x1 + m32 * x2 + m33 * x3)
                            for i in range(count):
                                t = first + sign * (k + i + shift)
                                if 0 <= t < length:
                                    load_tokens(p, Y, x_tile, real, image, t, 1, channel, width)
                                    store(x_tile, load(x_tile, real) + load(y_tile + i * row, real))
                                    store_tokens(p, Y, x_tile, real, image, t, 1, channel, width)
            if last_state:
                for head in range(first_head, end_head):
                    target = last_state + (image * heads + head) * state_bytes
                    for block in range(blocks):
                        width = min(LANES, headdim - block * LANES)
                        tile = kept + (head - first_head) * head_bytes + block * block_bytes
                        store_tile(tile, real, states, target + block * row, headdim * size, size, width)
        task = take_next(p + 8 * NEXT_TASK)


def make_float32(stamp: int) -> Callable[[int], None]:
    """Makes the kernel of float32; the stamp, in its cache's key, is not 0."""

    def kernel(p: int) -> None:
        if stamp:
            scan(p, np.float32(0), np.float32(1))

    return kernel


def make_float64(stamp: int) -> Callable[[int], None]:
    """Makes the kernel of float64, like :func:`make_float32`."""

    def kernel(p: int) -> None:
        if stamp:
            scan(p, np.float64(0), np.float64(1))

    return kernel
