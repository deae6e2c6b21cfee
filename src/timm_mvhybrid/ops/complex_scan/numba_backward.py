"""The adjoint of the fused scan with complex poles: chunk by chunk against time, each chunk's states computed again.

Tasks as in ``selective_scan/numba_backward.py``; formulas: ``cpu.backward``; rates and angles: ``numba_forward.py``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from ..fused.lanes import (
    LANES,
    cospi,
    exp2,
    load,
    load_integer,
    load_number,
    sinpi,
    size_of,
    softplus,
    softplus_slope,
    spread,
    store,
    take_next,
)
from ..fused.tiles import add_up, fill_tile, load_tile, load_tokens, store_tile, store_tokens
from .cpu import CHUNK

# places of the arguments, as in numba_forward
(
    NEXT_TASK,
    NEXT_ROOM,
    BATCH,
    LENGTH,
    GROUPS,
    PAIRS,
    CHANNELS,
    REVERSE,
    PARTS,
    RATES,
    ANGLES,
    A,
    W,
    B,
    C,
    D,
    BIAS,
    CHUNK_STATES,
    GRAD_A,
    GRAD_W,
    GRAD_B,
    GRAD_C,
    GRAD_D,
    GRAD_BIAS,
    ROOM,
    ROOM_BYTES,
) = range(26)
U, DELTA, GRAD_Y, GRAD_U, GRAD_DELTA = range(26, 46, 4)

_TILES = 6


def room_rows(pairs: int, blocks: int) -> int:
    """Rows of ``LANES`` numbers that a thread needs, for this many blocks a task."""
    return (6 + 8 * CHUNK) * pairs + _TILES * CHUNK + 2 + blocks * (4 * pairs + 2)


@njit
def differentiate(p: int, real: Any) -> None:
    """Works off tasks until there is none left; ``real`` is a 0 of the type that is computed in."""
    size = size_of(real)
    row = LANES * size
    tile = CHUNK * row
    batch, length = load_integer(p + 8 * BATCH), load_integer(p + 8 * LENGTH)
    groups, pairs = load_integer(p + 8 * GROUPS), load_integer(p + 8 * PAIRS)
    channels, parts = load_integer(p + 8 * CHANNELS), load_integer(p + 8 * PARTS)
    reverse = load_integer(p + 8 * REVERSE)
    rates_matrix, angles_matrix = load_integer(p + 8 * RATES), load_integer(p + 8 * ANGLES)
    a_matrix, w_matrix = load_integer(p + 8 * A), load_integer(p + 8 * W)
    b_matrix, c_matrix = load_integer(p + 8 * B), load_integer(p + 8 * C)
    skip, bias = load_integer(p + 8 * D), load_integer(p + 8 * BIAS)
    chunk_states = load_integer(p + 8 * CHUNK_STATES)
    grad_a, grad_w = load_integer(p + 8 * GRAD_A), load_integer(p + 8 * GRAD_W)
    grad_b, grad_c = load_integer(p + 8 * GRAD_B), load_integer(p + 8 * GRAD_C)
    grad_d, grad_bias = load_integer(p + 8 * GRAD_D), load_integer(p + 8 * GRAD_BIAS)

    rates = load_integer(p + 8 * ROOM) + take_next(p + 8 * NEXT_ROOM) * load_integer(p + 8 * ROOM_BYTES)
    plane = pairs * row
    angles, a_tile, w_tile = rates + plane, rates + 2 * plane, rates + 3 * plane
    begin = rates + 4 * plane
    turns = begin + 2 * plane
    trajectory = turns + 2 * pairs * tile
    b_sums = trajectory + 2 * pairs * tile
    c_sums = b_sums + 2 * pairs * tile
    biased_tile = c_sums + 2 * pairs * tile
    step_tile, x_tile, grad_tile = biased_tile + tile, biased_tile + 2 * tile, biased_tile + 3 * tile
    grad_u_tile, grad_delta_tile = biased_tile + 4 * tile, biased_tile + 5 * tile
    skip_tile = biased_tile + 6 * tile
    bias_tile = skip_tile + row
    kept = bias_tile + row
    kept_bytes = (4 * pairs + 2) * row

    blocks = (channels + LANES - 1) // LANES
    all_blocks = groups * blocks
    part_blocks = (all_blocks + parts - 1) // parts
    num_chunks = (length + CHUNK - 1) // CHUNK
    matrix_bytes = groups * pairs * channels * size
    half = pairs * size
    token_bytes = groups * 2 * half
    fill_tile(b_sums, real, 4 * CHUNK * pairs, real)
    task = take_next(p + 8 * NEXT_TASK)
    while task < batch * parts:
        image, part = task // parts, task % parts
        first_block = part * part_blocks
        end_block = min(all_blocks, first_block + part_blocks)
        fill_tile(kept, real, (end_block - first_block) * (4 * pairs + 2), real)
        for chunk in range(num_chunks - 1, -1, -1):
            start = (num_chunks - 1 - chunk if reverse else chunk) * CHUNK
            steps = min(CHUNK, length - start)
            for block in range(first_block, end_block):
                group, first = block // blocks, block % blocks * LANES
                width = min(LANES, channels - first)
                channel = group * channels + first
                offset = (group * pairs * channels + first) * size
                state_offset = (group * 2 * pairs * channels + first) * size
                token_offset = ((image * length + start) * groups + group) * 2 * half
                carry = kept + (block - first_block) * kept_bytes
                a_sums, w_sums = carry + 2 * plane, carry + 3 * plane
                d_sum = carry + 4 * plane
                bias_sum = d_sum + row
                load_tile(rates, real, pairs, rates_matrix + offset, channels * size, size, width)
                load_tile(angles, real, pairs, angles_matrix + offset, channels * size, size, width)
                load_tile(a_tile, real, pairs, a_matrix + offset, channels * size, size, width)
                load_tile(w_tile, real, pairs, w_matrix + offset, channels * size, size, width)
                load_tile(
                    begin,
                    real,
                    2 * pairs,
                    chunk_states + (chunk * batch + image) * 2 * matrix_bytes + state_offset,
                    channels * size,
                    size,
                    width,
                )
                fill_tile(skip_tile, real, 2, real)
                if skip:
                    load_tile(skip_tile, real, 1, skip + channel * size, 0, size, width)
                if bias:
                    load_tile(bias_tile, real, 1, bias + channel * size, 0, size, width)
                load_tokens(p, DELTA, biased_tile, real, image, start, steps, channel, width)
                load_tokens(p, U, x_tile, real, image, start, steps, channel, width)
                load_tokens(p, GRAD_Y, grad_tile, real, image, start, steps, channel, width)

                # the states once more, as in numba_forward
                before = begin
                for index in range(steps):
                    t = steps - 1 - index if reverse else index
                    biased = load(biased_tile + t * row, real) + load(bias_tile, real)
                    store(biased_tile + t * row, biased)
                    step = softplus(biased)
                    store(step_tile + t * row, step)
                    driven = step * load(x_tile + t * row, real)
                    here = t * 2 * plane
                    numbers = b_matrix + token_offset + t * token_bytes
                    for n in range(pairs):
                        at, across = n * row, plane + n * row
                        decay = exp2(step * load(rates + at, real))
                        angle = step * load(angles + at, real)
                        turn, turn_across = decay * cospi(angle), decay * sinpi(angle)
                        h_real, h_imaginary = load(before + at, real), load(before + across, real)
                        now = driven * spread(load_number(numbers + n * size, real))
                        now_across = driven * spread(load_number(numbers + n * size + half, real))
                        store(trajectory + here + at, now + turn * h_real - turn_across * h_imaginary)
                        store(
                            trajectory + here + across, now_across + turn * h_imaginary + turn_across * h_real
                        )
                        store(turns + here + at, turn)
                        store(turns + here + across, turn_across)
                    before = trajectory + here

                for index in range(steps):
                    t = index if reverse else steps - 1 - index
                    earlier = t + 1 if reverse else t - 1
                    previous = begin if index == steps - 1 else trajectory + earlier * 2 * plane
                    here = t * 2 * plane
                    step, x = load(step_tile + t * row, real), load(x_tile + t * row, real)
                    driven = step * x
                    grad = load(grad_tile + t * row, real)
                    grad_driven, grad_step = spread(real), spread(real)
                    b_numbers = b_matrix + token_offset + t * token_bytes
                    c_numbers = c_matrix + token_offset + t * token_bytes
                    for n in range(pairs):
                        at, across = n * row, plane + n * row
                        b = spread(load_number(b_numbers + n * size, real))
                        b_across = spread(load_number(b_numbers + n * size + half, real))
                        c = spread(load_number(c_numbers + n * size, real))
                        c_across = spread(load_number(c_numbers + n * size + half, real))
                        adjoint = load(carry + at, real) + c * grad
                        adjoint_across = load(carry + across, real) + c_across * grad
                        sums = c_sums + here
                        h_real, h_imaginary = (
                            load(trajectory + here + at, real),
                            load(trajectory + here + across, real),
                        )
                        store(sums + at, load(sums + at, real) + grad * h_real)
                        store(sums + across, load(sums + across, real) + grad * h_imaginary)
                        sums = b_sums + here
                        store(sums + at, load(sums + at, real) + adjoint * driven)
                        store(sums + across, load(sums + across, real) + adjoint_across * driven)
                        grad_driven = grad_driven + adjoint * b + adjoint_across * b_across
                        turn, turn_across = load(turns + here + at, real), load(turns + here + across, real)
                        back = turn * adjoint + turn_across * adjoint_across
                        back_across = turn * adjoint_across - turn_across * adjoint
                        store(carry + at, back)
                        store(carry + across, back_across)
                        h_real, h_imaginary = load(previous + at, real), load(previous + across, real)
                        stretch = back * h_real + back_across * h_imaginary
                        twist = back_across * h_real - back * h_imaginary
                        grad_step = grad_step + stretch * load(a_tile + at, real)
                        grad_step = grad_step + twist * load(w_tile + at, real)
                        store(a_sums + at, load(a_sums + at, real) + stretch * step)
                        store(w_sums + at, load(w_sums + at, real) + twist * step)
                    store(grad_u_tile + t * row, grad_driven * step + grad * load(skip_tile, real))
                    store(d_sum, load(d_sum, real) + grad * x)
                    grad_step = (grad_step + grad_driven * x) * softplus_slope(
                        load(biased_tile + t * row, real)
                    )
                    store(grad_delta_tile + t * row, grad_step)
                    store(bias_sum, load(bias_sum, real) + grad_step)

                store_tokens(p, GRAD_U, grad_u_tile, real, image, start, steps, channel, width)
                store_tokens(p, GRAD_DELTA, grad_delta_tile, real, image, start, steps, channel, width)
                if block == end_block - 1 or block % blocks == blocks - 1:
                    target = part * batch * length * token_bytes + token_offset
                    add_up(b_sums, real, steps, 2 * pairs, grad_b + target, token_bytes)
                    add_up(c_sums, real, steps, 2 * pairs, grad_c + target, token_bytes)

        for block in range(first_block, end_block):
            group, first = block // blocks, block % blocks * LANES
            width = min(LANES, channels - first)
            offset = image * matrix_bytes + (group * pairs * channels + first) * size
            channel = (image * groups + group) * channels + first
            sums = kept + (block - first_block) * kept_bytes + 2 * plane
            store_tile(sums, real, pairs, grad_a + offset, channels * size, size, width)
            store_tile(sums + plane, real, pairs, grad_w + offset, channels * size, size, width)
            store_tile(sums + 2 * plane, real, 1, grad_d + channel * size, 0, size, width)
            store_tile(sums + 2 * plane + row, real, 1, grad_bias + channel * size, 0, size, width)
        task = take_next(p + 8 * NEXT_TASK)


def make_float32(stamp: int) -> Callable[[int], None]:
    """Makes the kernel of float32; the stamp, in its cache's key, is not 0."""

    def kernel(p: int) -> None:
        if stamp:
            differentiate(p, np.float32(0))

    return kernel


def make_float64(stamp: int) -> Callable[[int], None]:
    """Makes the kernel of float64, like :func:`make_float32`."""

    def kernel(p: int) -> None:
        if stamp:
            differentiate(p, np.float64(0))

    return kernel
