"""Tiles: a few rows of ``LANES`` numbers each, in memory that stays in the first cache, and how they are filled.

A tile holds float32 or float64. What it is filled from may be bfloat16, and narrower than the tile: lanes beyond its
``width`` become 0.
"""

from typing import Any

from numba import njit

from .lanes import (
    LANES,
    load,
    load_bfloat16,
    load_bfloat16_number,
    load_integer,
    load_number,
    size_of,
    spread,
    store,
    store_bfloat16,
    store_bfloat16_number,
    store_number,
    total,
)

BFLOAT16 = 2
"""Bytes of a number by which memory is known to hold bfloat16; any other size is that of the tile's own type."""


@njit
def fill_tile(tile: int, real: Any, rows: int, number: Any) -> None:
    """Writes one number everywhere; ``real`` is any number of the tile's type, here and below."""
    size = size_of(real)
    for row in range(rows):
        store(tile + row * LANES * size, spread(number))


@njit
def load_tile(tile: int, real: Any, rows: int, source: int, stride: int, size: int, width: int) -> None:
    """Reads rows that are ``stride`` bytes apart."""
    row_bytes = LANES * size_of(real)
    for row in range(rows):
        here, there = tile + row * row_bytes, source + row * stride
        if width == LANES:
            if size == BFLOAT16:
                store(here, load_bfloat16(there, real))
            else:
                store(here, load(there, real))
        else:
            store(here, spread(real))
            for lane in range(width):
                if size == BFLOAT16:
                    store_number(here + lane * size_of(real), load_bfloat16_number(there + lane * size, real))
                else:
                    store_number(here + lane * size_of(real), load_number(there + lane * size, real))


@njit
def store_tile(tile: int, real: Any, rows: int, target: int, stride: int, size: int, width: int) -> None:
    """Writes rows that are ``stride`` bytes apart."""
    row_bytes = LANES * size_of(real)
    for row in range(rows):
        here, there = tile + row * row_bytes, target + row * stride
        if width == LANES:
            if size == BFLOAT16:
                store_bfloat16(there, load(here, real))
            else:
                store(there, load(here, real))
        else:
            for lane in range(width):
                number = load_number(here + lane * size_of(real), real)
                if size == BFLOAT16:
                    store_bfloat16_number(there + lane * size, number)
                else:
                    store_number(there + lane * size, number)


@njit
def load_tokens(
    p: int, place: int, tile: int, real: Any, image: int, start: int, steps: int, channel: int, width: int
) -> None:
    """Reads a block of channels of a few tokens of the tensor at a place."""
    size, token = load_integer(p + 8 * place + 8), load_integer(p + 8 * place + 24)
    source = load_integer(p + 8 * place) + image * load_integer(p + 8 * place + 16)
    load_tile(tile, real, steps, source + start * token + channel * size, token, size, width)


@njit
def store_tokens(
    p: int, place: int, tile: int, real: Any, image: int, start: int, steps: int, channel: int, width: int
) -> None:
    """Writes a block of channels of a few tokens of the tensor at a place."""
    size, token = load_integer(p + 8 * place + 8), load_integer(p + 8 * place + 24)
    target = load_integer(p + 8 * place) + image * load_integer(p + 8 * place + 16)
    store_tile(tile, real, steps, target + start * token + channel * size, token, size, width)


@njit
def add_up(sums: int, real: Any, steps: int, states: int, target: int, token: int) -> None:
    """Writes the sums over the lanes of (steps, states) rows, and clears these."""
    size = size_of(real)
    for t in range(steps):
        for n in range(states):
            here = sums + (t * states + n) * LANES * size
            store_number(target + t * token + n * size, total(load(here, real)))
    fill_tile(sums, real, steps * states, real)
