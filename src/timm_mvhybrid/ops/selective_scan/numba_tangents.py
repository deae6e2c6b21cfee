"""The selective scan and its derivatives along several directions, by numba: a block of channels, chunk after chunk.

With decays a_t = exp(δ_t A) and a dot for the derivative along a direction::

    ḣ_t = a_t ḣ_{t−1} + (a_t A h_{t−1}) δ̇_t + (δ̇_t u_t + δ_t u̇_t) B_t + δ_t u_t Ḃ_t
    ẏ_t = C_t · ḣ_t + Ċ_t · h_t + D u̇_t

What all directions share of a chunk, a, a A h and h, is computed first and stays in the caches; then each direction goes
through the chunk. Tasks and layouts are those of ``numba_forward.py``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from ..fused.lanes import LANES, exp2, load, load_integer, load_number, size_of, spread, store, take_next
from ..fused.tiles import fill_tile, load_tile, store_tile
from .cpu import CHUNK

# places of the arguments among the integers that a kernel is given; strides are numbers of bytes
(
    NEXT_TASK,
    NEXT_ROOM,
    BATCH,
    LENGTH,
    GROUPS,
    STATES,
    CHANNELS,
    DIRECTIONS,
    REVERSE,
    RATES,
    MATRIX,
    B,
    C,
    D,
    STEP,
    STEP_SLOPE,
    U,
    B_MOVED,
    C_MOVED,
    Y,
    LAST_STATE,
    Y_MOVED,
    LAST_STATE_MOVED,
    ROOM,
    ROOM_BYTES,
    DELTA_MOVED,
    DELTA_DIRECTION,
    DELTA_ROW,
    DELTA_TOKEN,
    U_MOVED,
    U_DIRECTION,
    U_ROW,
    U_TOKEN,
    NUM_ARGUMENTS,
) = range(34)


def room_rows(d_state: int, directions: int) -> int:
    """Rows of ``LANES`` numbers that a thread needs."""
    return (3 + directions + 3 * CHUNK) * d_state + 7 * CHUNK + 1


@njit
def scan(p: int, real: Any) -> None:
    """Works off tasks until there is none left; ``real`` is a 0 of the type that is computed in."""
    size = size_of(real)
    row = LANES * size
    batch, length = load_integer(p + 8 * BATCH), load_integer(p + 8 * LENGTH)
    groups, states = load_integer(p + 8 * GROUPS), load_integer(p + 8 * STATES)
    channels, directions = load_integer(p + 8 * CHANNELS), load_integer(p + 8 * DIRECTIONS)
    reverse = load_integer(p + 8 * REVERSE)
    token_bytes, matrix_bytes = groups * channels * size, groups * states * size
    state_bytes = channels * size

    rates = load_integer(p + 8 * ROOM) + take_next(p + 8 * NEXT_ROOM) * load_integer(p + 8 * ROOM_BYTES)
    matrix = rates + states * row
    h = matrix + states * row
    moved = h + states * row
    decays = moved + directions * states * row
    slopes = decays + CHUNK * states * row
    kept = slopes + CHUNK * states * row
    steps_tile = kept + CHUNK * states * row
    slope_tile = steps_tile + CHUNK * row
    x_tile = slope_tile + CHUNK * row
    driven_tile = x_tile + CHUNK * row
    delta_tile = driven_tile + CHUNK * row
    u_tile = delta_tile + CHUNK * row
    y_tile = u_tile + CHUNK * row
    skip_tile = y_tile + CHUNK * row
    blocks = (channels + LANES - 1) // LANES
    num_chunks = (length + CHUNK - 1) // CHUNK
    task = take_next(p + 8 * NEXT_TASK)
    while task < batch * groups * blocks:
        image, rest = task // (groups * blocks), task % (groups * blocks)
        group, first = rest // blocks, rest % blocks * LANES
        width = min(LANES, channels - first)
        channel = (group * channels + first) * size
        state_place = group * states * state_bytes + first * size
        load_tile(rates, real, states, load_integer(p + 8 * RATES) + state_place, state_bytes, size, width)
        load_tile(matrix, real, states, load_integer(p + 8 * MATRIX) + state_place, state_bytes, size, width)
        fill_tile(h, real, (1 + directions) * states, real)
        fill_tile(skip_tile, real, 1, real)
        if load_integer(p + 8 * D):
            load_tile(skip_tile, real, 1, load_integer(p + 8 * D) + channel, 0, size, width)
        d = load(skip_tile, real)
        for chunk in range(num_chunks):
            start = (num_chunks - 1 - chunk if reverse else chunk) * CHUNK
            steps = min(CHUNK, length - start)
            place = (image * length + start) * token_bytes + channel
            load_tile(steps_tile, real, steps, load_integer(p + 8 * STEP) + place, token_bytes, size, width)
            load_tile(
                slope_tile, real, steps, load_integer(p + 8 * STEP_SLOPE) + place, token_bytes, size, width
            )
            load_tile(x_tile, real, steps, load_integer(p + 8 * U) + place, token_bytes, size, width)
            token = (image * length + start) * matrix_bytes + group * states * size
            b, c = load_integer(p + 8 * B) + token, load_integer(p + 8 * C) + token
            for index in range(steps):
                t = steps - 1 - index if reverse else index
                step, x = load(steps_tile + t * row, real), load(x_tile + t * row, real)
                driven = step * x
                store(driven_tile + t * row, driven)
                out = d * x
                for n in range(states):
                    decay = exp2(step * load(rates + n * row, real))
                    left = decay * load(h + n * row, real)
                    state = left + driven * spread(load_number(b + t * matrix_bytes + n * size, real))
                    at = (t * states + n) * row
                    store(decays + at, decay)
                    store(slopes + at, left * load(matrix + n * row, real))
                    store(kept + at, state)
                    store(h + n * row, state)
                    out = out + state * spread(load_number(c + t * matrix_bytes + n * size, real))
                store(y_tile + t * row, out)
            store_tile(y_tile, real, steps, load_integer(p + 8 * Y) + place, token_bytes, size, width)
            for direction in range(directions):
                delta_place = direction * load_integer(p + 8 * DELTA_DIRECTION)
                delta_place += image * load_integer(p + 8 * DELTA_ROW)
                delta_place += start * load_integer(p + 8 * DELTA_TOKEN) + channel
                load_tile(
                    delta_tile,
                    real,
                    steps,
                    load_integer(p + 8 * DELTA_MOVED) + delta_place,
                    load_integer(p + 8 * DELTA_TOKEN),
                    size,
                    width,
                )
                u_place = direction * load_integer(p + 8 * U_DIRECTION) + image * load_integer(p + 8 * U_ROW)
                u_place += start * load_integer(p + 8 * U_TOKEN) + channel
                load_tile(
                    u_tile,
                    real,
                    steps,
                    load_integer(p + 8 * U_MOVED) + u_place,
                    load_integer(p + 8 * U_TOKEN),
                    size,
                    width,
                )
                moved_token = direction * batch * length * matrix_bytes + token
                b_moved = load_integer(p + 8 * B_MOVED) + moved_token
                c_moved = load_integer(p + 8 * C_MOVED) + moved_token
                own = moved + direction * states * row
                for index in range(steps):
                    t = steps - 1 - index if reverse else index
                    step_moved = load(slope_tile + t * row, real) * load(delta_tile + t * row, real)
                    x_moved = load(u_tile + t * row, real)
                    driven = load(driven_tile + t * row, real)
                    driven_moved = (
                        step_moved * load(x_tile + t * row, real) + load(steps_tile + t * row, real) * x_moved
                    )
                    out = d * x_moved
                    for n in range(states):
                        at, number = (t * states + n) * row, t * matrix_bytes + n * size
                        state = load(decays + at, real) * load(own + n * row, real)
                        state = state + load(slopes + at, real) * step_moved
                        state = state + driven_moved * spread(load_number(b + number, real))
                        state = state + driven * spread(load_number(b_moved + number, real))
                        store(own + n * row, state)
                        out = out + state * spread(load_number(c + number, real))
                        out = out + load(kept + at, real) * spread(load_number(c_moved + number, real))
                    store(y_tile + t * row, out)
                target = load_integer(p + 8 * Y_MOVED) + direction * batch * length * token_bytes + place
                store_tile(y_tile, real, steps, target, token_bytes, size, width)
        last = image * groups * states * state_bytes + state_place
        store_tile(h, real, states, load_integer(p + 8 * LAST_STATE) + last, state_bytes, size, width)
        for direction in range(directions):
            target = load_integer(p + 8 * LAST_STATE_MOVED) + last
            target += direction * batch * groups * states * state_bytes
            store_tile(moved + direction * states * row, real, states, target, state_bytes, size, width)
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
