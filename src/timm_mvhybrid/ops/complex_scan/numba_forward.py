"""The fused scan with complex poles: the recurrence of a block of channels, both parts of its states in the first cache.

Tasks and threads as in ``selective_scan/numba_forward.py``; formulas and layouts: ``cpu.py``. ``rates`` are A log2 e, so
that a decay is a power of two, and ``angles`` are w / π, so that a turn is known from the fraction of a number.
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
    spread,
    store,
    take_next,
)
from ..fused.tiles import fill_tile, load_tile, load_tokens, store_tile, store_tokens
from .cpu import CHUNK

# places of the arguments among the integers that a kernel is given; after that of a tensor of tokens are its bytes a
# number, a row of the batch and a token
(
    NEXT_TASK,
    NEXT_ROOM,
    BATCH,
    LENGTH,
    GROUPS,
    PAIRS,
    CHANNELS,
    REVERSE,
    SAVE,
    RATES,
    ANGLES,
    B,
    C,
    D,
    BIAS,
    CHUNK_STATES,
    ROOM,
    ROOM_BYTES,
) = range(18)
U, DELTA, Y = range(18, 30, 4)


def room_rows(pairs: int) -> int:
    """Rows of ``LANES`` numbers that a thread needs."""
    return 4 * pairs + 3 * CHUNK + 2


@njit
def scan(p: int, real: Any) -> None:
    """Works off tasks until there is none left; ``real`` is a 0 of the type that is computed in."""
    size = size_of(real)
    row = LANES * size
    batch, length = load_integer(p + 8 * BATCH), load_integer(p + 8 * LENGTH)
    groups, pairs = load_integer(p + 8 * GROUPS), load_integer(p + 8 * PAIRS)
    channels = load_integer(p + 8 * CHANNELS)
    reverse, save = load_integer(p + 8 * REVERSE), load_integer(p + 8 * SAVE)
    rates_matrix, angles_matrix = load_integer(p + 8 * RATES), load_integer(p + 8 * ANGLES)
    b_matrix, c_matrix = load_integer(p + 8 * B), load_integer(p + 8 * C)
    skip, bias = load_integer(p + 8 * D), load_integer(p + 8 * BIAS)
    chunk_states = load_integer(p + 8 * CHUNK_STATES)

    rates = load_integer(p + 8 * ROOM) + take_next(p + 8 * NEXT_ROOM) * load_integer(p + 8 * ROOM_BYTES)
    plane = pairs * row
    angles, h = rates + plane, rates + 2 * plane
    step_tile = h + 2 * plane
    x_tile, y_tile = step_tile + CHUNK * row, step_tile + 2 * CHUNK * row
    skip_tile = step_tile + 3 * CHUNK * row
    bias_tile = skip_tile + row
    blocks = (channels + LANES - 1) // LANES
    num_chunks = (length + CHUNK - 1) // CHUNK
    matrix_bytes = groups * 2 * pairs * channels * size
    half = pairs * size
    task = take_next(p + 8 * NEXT_TASK)
    while task < batch * groups * blocks:
        image, rest = task // (groups * blocks), task % (groups * blocks)
        group, first = rest // blocks, rest % blocks * LANES
        width = min(LANES, channels - first)
        channel = group * channels + first
        offset = (group * pairs * channels + first) * size
        state_offset = image * matrix_bytes + (group * 2 * pairs * channels + first) * size
        load_tile(rates, real, pairs, rates_matrix + offset, channels * size, size, width)
        load_tile(angles, real, pairs, angles_matrix + offset, channels * size, size, width)
        fill_tile(h, real, 2 * pairs, real)
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
                target = chunk_states + chunk * batch * matrix_bytes + state_offset
                store_tile(h, real, 2 * pairs, target, channels * size, size, width)
            load_tokens(p, DELTA, step_tile, real, image, start, steps, channel, width)
            load_tokens(p, U, x_tile, real, image, start, steps, channel, width)
            for index in range(steps):
                t = steps - 1 - index if reverse else index
                step = softplus(load(step_tile + t * row, real) + raised)
                x = load(x_tile + t * row, real)
                driven = step * x
                out = d * x
                token = ((image * length + start + t) * groups + group) * 2 * half
                for n in range(pairs):
                    here, number = n * row, token + n * size
                    decay = exp2(step * load(rates + here, real))
                    angle = step * load(angles + here, real)
                    turn, turn_across = decay * cospi(angle), decay * sinpi(angle)
                    h_real, h_imaginary = load(h + here, real), load(h + plane + here, real)
                    now = driven * spread(load_number(b_matrix + number, real))
                    now_across = driven * spread(load_number(b_matrix + number + half, real))
                    now = now + turn * h_real - turn_across * h_imaginary
                    now_across = now_across + turn * h_imaginary + turn_across * h_real
                    store(h + here, now)
                    store(h + plane + here, now_across)
                    out = out + now * spread(load_number(c_matrix + number, real))
                    out = out + now_across * spread(load_number(c_matrix + number + half, real))
                store(y_tile + t * row, out)
            store_tokens(p, Y, y_tile, real, image, start, steps, channel, width)
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
