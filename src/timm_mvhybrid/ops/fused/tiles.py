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
    load_number,
    size_of,
    spread,
    store,
    store_bfloat16,
    store_bfloat16_number,
    store_number,
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
