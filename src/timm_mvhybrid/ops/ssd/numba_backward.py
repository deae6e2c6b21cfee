"""The adjoint of the fused state-space-duality scan: chunk by chunk against time, four steps at a time.

Tasks, layouts and the decays e and a_ij of four steps as in ``numba_forward.py``. The states before each four steps of a
chunk are computed once more. With the state h before four steps and the gradient λ of that after them, of which
λ' = e_3 λ + Σ_i e_i g_i ⊗ C_i is passed on, and with S_ij = g_i · x_j::

    grad x_j = δ_j (Σ_{i≥j} (C_i · B_j) a_ij g_i + a_3j λ B_j)
    grad C_i = e_i g_i h + Σ_{j≤i} S_ij a_ij δ_j B_j
    grad B_j = a_3j δ_j x_j λ + Σ_{i≥j} S_ij a_ij δ_j C_i

The logarithm of a decay gathers what passes it: pairs j before it and i after it, what reached i from h, what left j for
λ, and e_3 λ · h. These are sums alone; no two large numbers are subtracted.
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
    store_number,
    take_next,
    total,
)
from ..fused.tiles import fill_tile, load_tile, load_tokens, store_tokens
from .cpu import CHUNK
from .numba_steps import (
    PAIRS,
    QUADS,
    STEPS,
    add_outer_products,
    add_pair_products,
    dot_tiles,
    four_numbers,
    four_places,
    load_steps,
    rebuild_states,
    write_scores,
)

# places of the arguments, as in numba_forward
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
    PARTS,
    STEP,
    DECAY,
    B,
    C,
    CHUNK_STATES,
    GRAD_LAST,
    GRAD_STEP,
    GRAD_DECAY,
    GRAD_B,
    GRAD_C,
    ROOM,
    ROOM_BYTES,
) = range(24)
X, GRAD_Y, GRAD_X = range(24, 36, 4)


def room_rows(states: int, blocks: int, part_heads: int) -> int:
    """Rows of ``LANES`` numbers that a thread needs, for this many blocks of channels a head and heads a task."""
    return (
        (part_heads + QUADS) * blocks * states
        + 2 * QUADS * STEPS * states
        + 2 * QUADS * PAIRS
        + 4 * STEPS * blocks
        + STEPS
        + 1
    )


@njit
def differentiate(p: int, real: Any, one: Any) -> None:
    """Works off tasks until there is none left; ``real`` is a 0 of the type that is computed in, ``one`` a 1."""
    size = size_of(real)
    row = LANES * size
    batch, length = load_integer(p + 8 * BATCH), load_integer(p + 8 * LENGTH)
    heads, headdim = load_integer(p + 8 * HEADS), load_integer(p + 8 * HEADDIM)
    groups, states = load_integer(p + 8 * GROUPS), load_integer(p + 8 * STATES)
    directions, reverse = load_integer(p + 8 * DIRECTIONS), load_integer(p + 8 * REVERSE)
    shift, parts = load_integer(p + 8 * SHIFT), load_integer(p + 8 * PARTS)
    step_matrix, decay_matrix = load_integer(p + 8 * STEP), load_integer(p + 8 * DECAY)
    b_matrix, c_matrix = load_integer(p + 8 * B), load_integer(p + 8 * C)
    chunk_states, grad_last = load_integer(p + 8 * CHUNK_STATES), load_integer(p + 8 * GRAD_LAST)
    grad_step, grad_decay = load_integer(p + 8 * GRAD_STEP), load_integer(p + 8 * GRAD_DECAY)
    grad_b, grad_c = load_integer(p + 8 * GRAD_B), load_integer(p + 8 * GRAD_C)

    x_tile = load_integer(p + 8 * ROOM) + take_next(p + 8 * NEXT_ROOM) * load_integer(p + 8 * ROOM_BYTES)
    blocks = (headdim + LANES - 1) // LANES
    wide = blocks * row
    g_tile, sent_tile = x_tile + STEPS * wide, x_tile + 2 * STEPS * wide
    received_tile, out_tile = x_tile + 3 * STEPS * wide, x_tile + 4 * STEPS * wide
    grad_tile = out_tile + STEPS * row
    scores = grad_tile + row
    pair_sums = scores + QUADS * PAIRS * row
    matrix_sums = pair_sums + QUADS * PAIRS * row
    starts = matrix_sums + 2 * QUADS * STEPS * states * row
    block_bytes = states * row
    head_bytes = blocks * block_bytes
    kept = starts + QUADS * head_bytes
    state_bytes = states * headdim * size
    group_heads = heads // groups
    part_heads = (heads + parts - 1) // parts
    num_chunks = (length + CHUNK - 1) // CHUNK
    matrix_bytes = batch * length * directions * groups * states * size
    fill_tile(matrix_sums, real, 2 * QUADS * STEPS * states, real)
    task = take_next(p + 8 * NEXT_TASK)
    while task < batch * parts:
        image, part = task // parts, task % parts
        first_head = part * part_heads
        end_head = min(heads, first_head + part_heads)
        for direction in range(directions):
            backwards = reverse != direction
            sign = -1 if backwards else 1
            fill_tile(kept, real, (end_head - first_head) * blocks * states, real)
            if grad_last:
                for head in range(first_head, end_head):
                    source = grad_last + (image * heads + head) * state_bytes
                    for block in range(blocks):
                        width = min(LANES, headdim - block * LANES)
                        tile = kept + (head - first_head) * head_bytes + block * block_bytes
                        load_tile(tile, real, states, source + block * row, headdim * size, size, width)
            for chunk in range(num_chunks - 1, -1, -1):
                place = num_chunks - 1 - chunk if backwards else chunk
                steps = min(CHUNK, length - place * CHUNK)
                first = place * CHUNK + (steps - 1 if backwards else 0)
                token = (image * length + first) * directions + direction
                stride = sign * directions * groups * states * size
                head_stride = sign * directions * heads * size
                quads = (steps + STEPS - 1) // STEPS
                for head in range(first_head, end_head):
                    matrix_offset = (token * groups + head // group_heads) * states * size
                    channel = head * headdim
                    b_rows, c_rows = b_matrix + matrix_offset, c_matrix + matrix_offset
                    if head == first_head or head % group_heads == 0:
                        write_scores(scores, real, b_rows, c_rows, stride, states, steps)
                        fill_tile(pair_sums, real, QUADS * PAIRS, real)
                    source = ((direction * num_chunks + chunk) * batch + image) * heads + head
                    source = chunk_states + source * state_bytes
                    for block in range(blocks):
                        width = min(LANES, headdim - block * LANES)
                        here = starts + block * block_bytes
                        load_tile(here, real, states, source + block * row, headdim * size, size, width)
                    head_numbers = (token * heads + head) * size
                    rebuild_states(
                        p,
                        X,
                        starts,
                        x_tile,
                        real,
                        step_matrix + head_numbers,
                        decay_matrix + head_numbers,
                        head_stride,
                        b_rows,
                        stride,
                        image,
                        first,
                        sign,
                        steps,
                        channel,
                        headdim,
                        states,
                    )
                    carry = kept + (head - first_head) * head_bytes
                    for quad in range(quads - 1, -1, -1):
                        k = quad * STEPS
                        count = min(STEPS, steps - k)
                        numbers = head_numbers + k * head_stride
                        d0, d1, d2, d3 = four_numbers(step_matrix + numbers, real, head_stride, count, real)
                        a0, a1, a2, a3 = four_numbers(decay_matrix + numbers, real, head_stride, count, one)
                        a20, a31 = a1 * a2, a2 * a3
                        a30 = a20 * a3
                        e1 = a0 * a1
                        e2 = e1 * a2
                        e3 = e2 * a3
                        here = first + sign * k
                        load_steps(p, X, x_tile, real, image, here, sign, count, channel, headdim)
                        load_steps(
                            p, GRAD_Y, g_tile, real, image, here + sign * shift, sign, count, channel, headdim
                        )
                        # S_ij a_ij; with δ_j what the matrices' gradients take, with the score what the steps' do
                        g1, g2, g3 = g_tile + wide, g_tile + 2 * wide, g_tile + 3 * wide
                        x1, x2, x3 = x_tile + wide, x_tile + 2 * wide, x_tile + 3 * wide
                        u00 = dot_tiles(g_tile, x_tile, real, blocks)
                        u10 = dot_tiles(g1, x_tile, real, blocks) * a1
                        u11 = dot_tiles(g1, x1, real, blocks)
                        u20 = dot_tiles(g2, x_tile, real, blocks) * a20
                        u21 = dot_tiles(g2, x1, real, blocks) * a2
                        u22 = dot_tiles(g2, x2, real, blocks)
                        u30 = dot_tiles(g3, x_tile, real, blocks) * a30
                        u31 = dot_tiles(g3, x1, real, blocks) * a31
                        u32 = dot_tiles(g3, x2, real, blocks) * a3
                        u33 = dot_tiles(g3, x3, real, blocks)
                        q = pair_sums + quad * PAIRS * size
                        first_pairs = (u00 * d0, u10 * d0, u11 * d1, u20 * d0, u21 * d1)
                        other_pairs = (u22 * d2, u30 * d0, u31 * d1, u32 * d2, u33 * d3)
                        for at, pair in enumerate(first_pairs + other_pairs):
                            store_number(q + at * size, load_number(q + at * size, real) + pair)
                        q = scores + quad * PAIRS * size
                        q00, q10 = load_number(q, real), load_number(q + size, real)
                        q11, q20 = load_number(q + 2 * size, real), load_number(q + 3 * size, real)
                        q21, q22 = load_number(q + 4 * size, real), load_number(q + 5 * size, real)
                        q30, q31 = load_number(q + 6 * size, real), load_number(q + 7 * size, real)
                        q32, q33 = load_number(q + 8 * size, real), load_number(q + 9 * size, real)
                        f0, f1, f2, f3 = spread(a0), spread(e1), spread(e2), spread(e3)
                        s0, s1, s2, s3 = spread(a30 * d0), spread(a31 * d1), spread(a3 * d2), spread(d3)
                        b0, b1, b2, b3 = four_places(b_rows + k * stride, stride, count)
                        c0, c1, c2, c3 = four_places(c_rows + k * stride, stride, count)
                        for block in range(blocks):
                            at = block * row
                            store(received_tile + at, load(g_tile + at, real) * f0)
                            store(received_tile + wide + at, load(g1 + at, real) * f1)
                            store(received_tile + 2 * wide + at, load(g2 + at, real) * f2)
                            store(received_tile + 3 * wide + at, load(g3 + at, real) * f3)
                            store(sent_tile + at, load(x_tile + at, real) * s0)
                            store(sent_tile + wide + at, load(x1 + at, real) * s1)
                            store(sent_tile + 2 * wide + at, load(x2 + at, real) * s2)
                            store(sent_tile + 3 * wide + at, load(x3 + at, real) * s3)
                        state, adjoint = starts + quad * head_bytes, carry
                        sums = matrix_sums + quad * 2 * STEPS * block_bytes
                        for block in range(0, blocks - 1, 2):
                            at, there = block * row, block * block_bytes
                            add_outer_products(
                                sums,
                                real,
                                states,
                                state + there,
                                adjoint + there,
                                received_tile + at,
                                sent_tile + at,
                                wide,
                                row,
                            )
                        if blocks % 2:
                            at, there = (blocks - 1) * row, (blocks - 1) * block_bytes
                            add_outer_products(
                                sums,
                                real,
                                states,
                                state + there,
                                adjoint + there,
                                received_tile + at,
                                sent_tile + at,
                                wide,
                                0,
                            )
                        started0 = started1 = started2 = started3 = spread(real)
                        ended0 = ended1 = ended2 = ended3 = spread(real)
                        through = spread(real)
                        for block in range(blocks):
                            at = block * row
                            v0, v1 = load(g_tile + at, real), load(g1 + at, real)
                            v2, v3 = load(g2 + at, real), load(g3 + at, real)
                            here_r = received_tile + at
                            r0, r1 = load(here_r, real), load(here_r + wide, real)
                            r2, r3 = load(here_r + 2 * wide, real), load(here_r + 3 * wide, real)
                            y0 = y1 = y2 = y3 = spread(real)
                            z0 = z1 = z2 = z3 = spread(real)
                            state = starts + quad * head_bytes + block * block_bytes
                            adjoint = carry + block * block_bytes
                            for n in range(states):
                                number = n * size
                                h, later = load(state, real), load(adjoint, real)
                                through = through + h * later
                                c = spread(load_number(c0 + number, real))
                                y0 = y0 + h * c
                                now = later * f3 + r0 * c
                                c = spread(load_number(c1 + number, real))
                                y1 = y1 + h * c
                                now = now + r1 * c
                                c = spread(load_number(c2 + number, real))
                                y2 = y2 + h * c
                                now = now + r2 * c
                                c = spread(load_number(c3 + number, real))
                                y3 = y3 + h * c
                                store(adjoint, now + r3 * c)
                                z0 = z0 + later * spread(load_number(b0 + number, real))
                                z1 = z1 + later * spread(load_number(b1 + number, real))
                                z2 = z2 + later * spread(load_number(b2 + number, real))
                                z3 = z3 + later * spread(load_number(b3 + number, real))
                                state += row
                                adjoint += row
                            started0, started1 = started0 + r0 * y0, started1 + r1 * y1
                            started2, started3 = started2 + r2 * y2, started3 + r3 * y3
                            ended0 = ended0 + load(x_tile + at, real) * z0
                            ended1 = ended1 + load(x1 + at, real) * z1
                            ended2 = ended2 + load(x2 + at, real) * z2
                            ended3 = ended3 + load(x3 + at, real) * z3
                            to0 = z0 * s0 + spread(q00 * d0) * v0 + spread(q10 * (a1 * d0)) * v1
                            to0 = to0 + spread(q20 * (a20 * d0)) * v2 + spread(q30 * (a30 * d0)) * v3
                            to1 = z1 * s1 + spread(q11 * d1) * v1
                            to1 = to1 + spread(q21 * (a2 * d1)) * v2 + spread(q31 * (a31 * d1)) * v3
                            to2 = z2 * s2 + spread(q22 * d2) * v2 + spread(q32 * (a3 * d2)) * v3
                            store(out_tile, to0)
                            store(out_tile + row, to1)
                            store(out_tile + 2 * row, to2)
                            store(out_tile + 3 * row, z3 * s3 + spread(q33 * d3) * v3)
                            width = min(LANES, headdim - block * LANES)
                            for i in range(count):
                                t, lanes = here + sign * i, channel + block * LANES
                                load_tokens(p, GRAD_X, grad_tile, real, image, t, 1, lanes, width)
                                store(grad_tile, load(grad_tile, real) + load(out_tile + i * row, real))
                                store_tokens(p, GRAD_X, grad_tile, real, image, t, 1, lanes, width)
                        g0s, g1s = total(started0), total(started1)
                        g2s, g3s = total(started2), total(started3)
                        l0, l1 = total(ended0) * a30, total(ended1) * a31
                        l2, l3 = total(ended2) * a3, total(ended3)
                        passed = total(through) * e3
                        # T_ij = S_ij (C_i · B_j) a_ij δ_j
                        p10, p20, p21 = u10 * q10, u20 * q20, u21 * q21
                        p30, p31, p32 = u30 * q30, u31 * q31, u32 * q32
                        out = grad_step + numbers
                        store_number(out, u00 * q00 + p10 + p20 + p30 + l0)
                        log = grad_decay + numbers
                        store_number(log, g0s + g1s + g2s + g3s + passed)
                        l0 = l0 * d0
                        if count > 1:
                            store_number(out + head_stride, u11 * q11 + p21 + p31 + l1)
                            sent = (p10 + p20 + p30) * d0
                            store_number(log + head_stride, sent + g1s + g2s + g3s + l0 + passed)
                            l1 = l1 * d1
                        if count > 2:
                            store_number(out + 2 * head_stride, u22 * q22 + p32 + l2)
                            sent = (p20 + p30) * d0 + (p21 + p31) * d1
                            store_number(log + 2 * head_stride, sent + g2s + g3s + l0 + l1 + passed)
                            l2 = l2 * d2
                        if count > 3:
                            store_number(out + 3 * head_stride, u33 * q33 + l3)
                            sent = p30 * d0 + p31 * d1 + p32 * d2
                            store_number(log + 3 * head_stride, sent + g3s + l0 + l1 + l2 + passed)
                    if head == end_head - 1 or head % group_heads == group_heads - 1:
                        target = part * matrix_bytes + matrix_offset
                        for k in range(steps):
                            sums = matrix_sums + (k // STEPS * states * 2 * STEPS + k % STEPS) * row
                            to_b, to_c = grad_b + target + k * stride, grad_c + target + k * stride
                            for n in range(states):
                                store_number(to_b + n * size, total(load(sums, real)))
                                store_number(to_c + n * size, total(load(sums + STEPS * row, real)))
                                sums += 2 * STEPS * row
                        fill_tile(matrix_sums, real, quads * 2 * STEPS * states, real)
                        add_pair_products(
                            pair_sums,
                            real,
                            b_rows,
                            c_rows,
                            grad_b + target,
                            grad_c + target,
                            stride,
                            states,
                            steps,
                        )
        task = take_next(p + 8 * NEXT_TASK)


def make_float32(stamp: int) -> Callable[[int], None]:
    """Makes the kernel of float32; the stamp, in its cache's key, is not 0."""

    def kernel(p: int) -> None:
        if stamp:
            differentiate(p, np.float32(0), np.float32(1))

    return kernel


def make_float64(stamp: int) -> Callable[[int], None]:
    """Makes the kernel of float64, like :func:`make_float32`."""

    def kernel(p: int) -> None:
        if stamp:
            differentiate(p, np.float64(0), np.float64(1))

    return kernel
