"""The adjoint of the fused selective scan: chunk by chunk against time, each chunk's states computed again.

A task is a row of the batch and some of its blocks of ``LANES`` channels, so that the sums over channels, which the
gradients of B and C are, stay within a thread. Formulas: ``cpu.backward``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from ..fused.lanes import (
    LANES,
    exp2,
    load,
    load_integer,
    load_number,
    silu,
    silu_slope,
    size_of,
    softplus,
    softplus_slope,
    spread,
    store,
    take_next,
)
from ..fused.tiles import add_up, fill_tile, load_tile, load_tokens, store_tile, store_tokens
from .cpu import CHUNK

# places of the arguments, as in numba_forward; a tensor's place is followed by its bytes a number, a row and a token
(
    NEXT_TASK,
    NEXT_ROOM,
    BATCH,
    LENGTH,
    GROUPS,
    STATES,
    CHANNELS,
    REVERSE,
    SOFTPLUS,
    PARTS,
    RATES,
    A,
    B,
    C,
    D,
    BIAS,
    CHUNK_STATES,
    GRAD_LAST_STATE,
    GRAD_A,
    GRAD_B,
    GRAD_C,
    GRAD_D,
    GRAD_BIAS,
    ROOM,
    ROOM_BYTES,
) = range(25)
U, DELTA, Z, GRAD_Y, GRAD_U, GRAD_DELTA, GRAD_Z = range(25, 53, 4)
NUM_BACKWARD = 53

_TILES = 9


def room_rows(d_state: int, blocks: int) -> int:
    """Rows of ``LANES`` numbers that a thread needs, for this many blocks a task."""
    return (3 + 4 * CHUNK) * d_state + _TILES * CHUNK + 2 + blocks * (2 * d_state + 2)


@njit
def differentiate(p: int, real: Any) -> None:
    """Works off tasks until there is none left; ``real`` is a 0 of the type that is computed in."""
    size = size_of(real)
    row = LANES * size
    tile = CHUNK * row
    batch, length = load_integer(p + 8 * BATCH), load_integer(p + 8 * LENGTH)
    groups, states = load_integer(p + 8 * GROUPS), load_integer(p + 8 * STATES)
    channels, parts = load_integer(p + 8 * CHANNELS), load_integer(p + 8 * PARTS)
    reverse, with_softplus = load_integer(p + 8 * REVERSE), load_integer(p + 8 * SOFTPLUS)
    rates_matrix, a_matrix = load_integer(p + 8 * RATES), load_integer(p + 8 * A)
    b_matrix, c_matrix = load_integer(p + 8 * B), load_integer(p + 8 * C)
    skip, bias = load_integer(p + 8 * D), load_integer(p + 8 * BIAS)
    chunk_states = load_integer(p + 8 * CHUNK_STATES)
    grad_last_state = load_integer(p + 8 * GRAD_LAST_STATE)
    grad_a, grad_b, grad_c = (
        load_integer(p + 8 * GRAD_A),
        load_integer(p + 8 * GRAD_B),
        load_integer(p + 8 * GRAD_C),
    )
    grad_d, grad_bias = load_integer(p + 8 * GRAD_D), load_integer(p + 8 * GRAD_BIAS)
    with_gate = load_integer(p + 8 * Z)

    rates = load_integer(p + 8 * ROOM) + take_next(p + 8 * NEXT_ROOM) * load_integer(p + 8 * ROOM_BYTES)
    a_tile = rates + states * row
    begin = a_tile + states * row
    decays = begin + states * row
    trajectory = decays + states * tile
    b_sums = trajectory + states * tile
    c_sums = b_sums + states * tile
    biased_tile = c_sums + states * tile
    step_tile, x_tile, grad_tile = biased_tile + tile, biased_tile + 2 * tile, biased_tile + 3 * tile
    gate_tile, y_tile = biased_tile + 4 * tile, biased_tile + 5 * tile
    grad_u_tile, grad_delta_tile, grad_z_tile = (
        biased_tile + 6 * tile,
        biased_tile + 7 * tile,
        biased_tile + 8 * tile,
    )
    skip_tile = biased_tile + 9 * tile
    bias_tile = skip_tile + row
    kept = bias_tile + row
    kept_bytes = (2 * states + 2) * row

    blocks = (channels + LANES - 1) // LANES
    all_blocks = groups * blocks
    part_blocks = (all_blocks + parts - 1) // parts
    num_chunks = (length + CHUNK - 1) // CHUNK
    matrix_bytes = groups * states * channels * size
    token_bytes = groups * states * size
    fill_tile(b_sums, real, 2 * CHUNK * states, real)
    task = take_next(p + 8 * NEXT_TASK)
    while task < batch * parts:
        image, part = task // parts, task % parts
        first_block = part * part_blocks
        end_block = min(all_blocks, first_block + part_blocks)
        fill_tile(kept, real, (end_block - first_block) * (2 * states + 2), real)
        if grad_last_state:
            for block in range(first_block, end_block):
                group, first = block // blocks, block % blocks * LANES
                load_tile(
                    kept + (block - first_block) * kept_bytes,
                    real,
                    states,
                    grad_last_state + image * matrix_bytes + (group * states * channels + first) * size,
                    channels * size,
                    size,
                    min(LANES, channels - first),
                )
        for chunk in range(num_chunks - 1, -1, -1):
            start = (num_chunks - 1 - chunk if reverse else chunk) * CHUNK
            steps = min(CHUNK, length - start)
            for block in range(first_block, end_block):
                group, first = block // blocks, block % blocks * LANES
                width = min(LANES, channels - first)
                channel = group * channels + first
                offset = (group * states * channels + first) * size
                token_offset = ((image * length + start) * groups + group) * states * size
                carry = kept + (block - first_block) * kept_bytes
                a_sums = carry + states * row
                d_sum = a_sums + states * row
                bias_sum = d_sum + row
                load_tile(rates, real, states, rates_matrix + offset, channels * size, size, width)
                load_tile(a_tile, real, states, a_matrix + offset, channels * size, size, width)
                load_tile(
                    begin,
                    real,
                    states,
                    chunk_states + (chunk * batch + image) * matrix_bytes + offset,
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
                if with_gate:
                    load_tokens(p, Z, gate_tile, real, image, start, steps, channel, width)

                # the states once more, as in numba_forward
                before = begin
                for index in range(steps):
                    t = steps - 1 - index if reverse else index
                    step = load(biased_tile + t * row, real) + load(bias_tile, real)
                    store(biased_tile + t * row, step)
                    if with_softplus:
                        step = softplus(step)
                    store(step_tile + t * row, step)
                    x = load(x_tile + t * row, real)
                    driven = step * x
                    y = load(skip_tile, real) * x
                    here = t * states * row
                    for n in range(states):
                        decay = exp2(step * load(rates + n * row, real))
                        number = load_number(b_matrix + token_offset + t * token_bytes + n * size, real)
                        state = decay * load(before + n * row, real) + driven * spread(number)
                        store(decays + here + n * row, decay)
                        store(trajectory + here + n * row, state)
                        if with_gate:
                            number = load_number(c_matrix + token_offset + t * token_bytes + n * size, real)
                            y = y + state * spread(number)
                    store(y_tile + t * row, y)
                    before = trajectory + here

                for index in range(steps):
                    t = index if reverse else steps - 1 - index
                    earlier = t + 1 if reverse else t - 1
                    previous = begin if index == steps - 1 else trajectory + earlier * states * row
                    here = t * states * row
                    step, x = load(step_tile + t * row, real), load(x_tile + t * row, real)
                    driven = step * x
                    grad = load(grad_tile + t * row, real)
                    if with_gate:
                        gate = load(gate_tile + t * row, real)
                        store(grad_z_tile + t * row, grad * load(y_tile + t * row, real) * silu_slope(gate))
                        grad = grad * silu(gate)
                    grad_driven, grad_step = spread(real), spread(real)
                    for n in range(states):
                        place = n * row
                        b = spread(load_number(b_matrix + token_offset + t * token_bytes + n * size, real))
                        c = spread(load_number(c_matrix + token_offset + t * token_bytes + n * size, real))
                        adjoint = load(carry + place, real) + c * grad
                        sums = c_sums + here + place
                        store(sums, load(sums, real) + grad * load(trajectory + here + place, real))
                        sums = b_sums + here + place
                        store(sums, load(sums, real) + adjoint * driven)
                        grad_driven = grad_driven + adjoint * b
                        decayed = load(decays + here + place, real) * adjoint
                        store(carry + place, decayed)
                        sensitivity = decayed * load(previous + place, real)
                        grad_step = grad_step + sensitivity * load(a_tile + place, real)
                        store(a_sums + place, load(a_sums + place, real) + sensitivity * step)
                    store(grad_u_tile + t * row, grad_driven * step + grad * load(skip_tile, real))
                    store(d_sum, load(d_sum, real) + grad * x)
                    grad_step = grad_step + grad_driven * x
                    if with_softplus:
                        grad_step = grad_step * softplus_slope(load(biased_tile + t * row, real))
                    store(grad_delta_tile + t * row, grad_step)
                    store(bias_sum, load(bias_sum, real) + grad_step)

                store_tokens(p, GRAD_U, grad_u_tile, real, image, start, steps, channel, width)
                store_tokens(p, GRAD_DELTA, grad_delta_tile, real, image, start, steps, channel, width)
                if with_gate:
                    store_tokens(p, GRAD_Z, grad_z_tile, real, image, start, steps, channel, width)
                if block == end_block - 1 or block % blocks == blocks - 1:
                    target = part * batch * length * token_bytes + token_offset
                    add_up(b_sums, real, steps, states, grad_b + target, token_bytes)
                    add_up(c_sums, real, steps, states, grad_c + target, token_bytes)

        for block in range(first_block, end_block):
            group, first = block // blocks, block % blocks * LANES
            width = min(LANES, channels - first)
            offset = image * matrix_bytes + (group * states * channels + first) * size
            channel = (image * groups + group) * channels + first
            sums = kept + (block - first_block) * kept_bytes + states * row
            store_tile(sums, real, states, grad_a + offset, channels * size, size, width)
            store_tile(sums + states * row, real, 1, grad_d + channel * size, 0, size, width)
            store_tile(sums + (states + 1) * row, real, 1, grad_bias + channel * size, 0, size, width)
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
