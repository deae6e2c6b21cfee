"""The fused selective scan: the recurrence of a block of channels, its states in the first cache.

A task is a row of the batch and a block of ``LANES`` channels of one group. Each thread takes the next task that
nobody has. Layouts and formulas: ``cpu.py``; ``rates`` are A log2 e, so that a decay is a power of two.
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
    size_of,
    softplus,
    spread,
    store,
    take_next,
)
from ..fused.tiles import fill_tile, load_tile, store_tile
from .cpu import CHUNK

# places of the arguments among the integers that a kernel is given; numbers of bytes where they name strides
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
    SAVE,
    U,
    U_SIZE,
    U_ROW,
    U_TOKEN,
    DELTA,
    DELTA_SIZE,
    DELTA_ROW,
    DELTA_TOKEN,
    Z,
    Z_SIZE,
    Z_ROW,
    Z_TOKEN,
    RATES,
    B,
    C,
    D,
    BIAS,
    Y,
    Y_SIZE,
    LAST_STATE,
    CHUNK_STATES,
    ROOM,
    ROOM_BYTES,
    NUM_FORWARD,
) = range(34)


def room_rows(d_state: int) -> int:
    """Rows of ``LANES`` numbers that a thread needs."""
    return 2 * d_state + 4 * CHUNK + 2


@njit
def scan(p: int, real: Any) -> None:
    """Works off tasks until there is none left; ``real`` is a 0 of the type that is computed in."""
    size = size_of(real)
    row = LANES * size
    batch, length = load_integer(p + 8 * BATCH), load_integer(p + 8 * LENGTH)
    groups, states, channels = (
        load_integer(p + 8 * GROUPS),
        load_integer(p + 8 * STATES),
        load_integer(p + 8 * CHANNELS),
    )
    reverse, save = load_integer(p + 8 * REVERSE), load_integer(p + 8 * SAVE)
    with_softplus = load_integer(p + 8 * SOFTPLUS)
    u, u_size, u_token = load_integer(p + 8 * U), load_integer(p + 8 * U_SIZE), load_integer(p + 8 * U_TOKEN)
    delta, delta_size = load_integer(p + 8 * DELTA), load_integer(p + 8 * DELTA_SIZE)
    delta_token = load_integer(p + 8 * DELTA_TOKEN)
    z, z_size, z_token = load_integer(p + 8 * Z), load_integer(p + 8 * Z_SIZE), load_integer(p + 8 * Z_TOKEN)
    u_row, delta_row, z_row = (
        load_integer(p + 8 * U_ROW),
        load_integer(p + 8 * DELTA_ROW),
        load_integer(p + 8 * Z_ROW),
    )
    b_matrix, c_matrix = load_integer(p + 8 * B), load_integer(p + 8 * C)
    skip, bias = load_integer(p + 8 * D), load_integer(p + 8 * BIAS)
    y, y_size = load_integer(p + 8 * Y), load_integer(p + 8 * Y_SIZE)
    last_state, chunk_states = load_integer(p + 8 * LAST_STATE), load_integer(p + 8 * CHUNK_STATES)
    rates_matrix = load_integer(p + 8 * RATES)

    rates = load_integer(p + 8 * ROOM) + take_next(p + 8 * NEXT_ROOM) * load_integer(p + 8 * ROOM_BYTES)
    h = rates + states * row
    steps_tile, x_tile, y_tile, z_tile = (
        h + states * row,
        h + (states + CHUNK) * row,
        h + (states + 2 * CHUNK) * row,
        h + (states + 3 * CHUNK) * row,
    )
    skip_tile = z_tile + CHUNK * row
    bias_tile = skip_tile + row
    blocks = (channels + LANES - 1) // LANES
    num_chunks = (length + CHUNK - 1) // CHUNK
    task = take_next(p + 8 * NEXT_TASK)
    while task < batch * groups * blocks:
        image, rest = task // (groups * blocks), task % (groups * blocks)
        group, first = rest // blocks, rest % blocks * LANES
        width = min(LANES, channels - first)
        channel = group * channels + first
        state_offset = (group * states * channels + first) * size
        image_offset = image * groups * states * channels * size + state_offset
        load_tile(rates, real, states, rates_matrix + state_offset, channels * size, size, width)
        fill_tile(h, real, states, real)
        fill_tile(skip_tile, real, 2, real)
        if skip:
            load_tile(skip_tile, real, 1, skip + channel * size, 0, size, width)
        if bias:
            load_tile(bias_tile, real, 1, bias + channel * size, 0, size, width)
        d, raised = load(skip_tile, real), load(bias_tile, real)
        for chunk in range(num_chunks):
            start = (num_chunks - 1 - chunk if reverse else chunk) * CHUNK
            steps = min(CHUNK, length - start)
            if save:
                target = chunk_states + chunk * batch * groups * states * channels * size + image_offset
                store_tile(h, real, states, target, channels * size, size, width)
            load_tile(
                steps_tile,
                real,
                steps,
                delta + image * delta_row + start * delta_token + channel * delta_size,
                delta_token,
                delta_size,
                width,
            )
            load_tile(
                x_tile,
                real,
                steps,
                u + image * u_row + start * u_token + channel * u_size,
                u_token,
                u_size,
                width,
            )
            if z:
                load_tile(
                    z_tile,
                    real,
                    steps,
                    z + image * z_row + start * z_token + channel * z_size,
                    z_token,
                    z_size,
                    width,
                )
            for index in range(steps):
                t = steps - 1 - index if reverse else index
                step = load(steps_tile + t * row, real) + raised
                if with_softplus:
                    step = softplus(step)
                x = load(x_tile + t * row, real)
                driven = step * x
                out = d * x
                token = ((image * length + start + t) * groups + group) * states * size
                for n in range(states):
                    decay = exp2(step * load(rates + n * row, real))
                    state = decay * load(h + n * row, real) + driven * spread(
                        load_number(b_matrix + token + n * size, real)
                    )
                    store(h + n * row, state)
                    out = out + state * spread(load_number(c_matrix + token + n * size, real))
                if z:
                    gate = load(z_tile + t * row, real)
                    out = out * silu(gate)
                store(y_tile + t * row, out)
            store_tile(
                y_tile,
                real,
                steps,
                y + ((image * length + start) * groups * channels + channel) * y_size,
                groups * channels * y_size,
                y_size,
                width,
            )
        store_tile(h, real, states, last_state + image_offset, channels * size, size, width)
        task = take_next(p + 8 * NEXT_TASK)


def make_float32(stamp: int) -> Callable[[int], None]:
    """Makes the kernel of float32; the stamp, in its cache's key, is not 0."""

    def kernel(p: int) -> None:
        if stamp:
            scan(p, np.float32(0))

    return kernel


def make_float64(stamp: int) -> Callable[[int], None]:
    """Makes the kernel of float64, like :func:`make_float32`."""

    def kernel(p: int) -> None:
        if stamp:
            scan(p, np.float64(0))

    return kernel
