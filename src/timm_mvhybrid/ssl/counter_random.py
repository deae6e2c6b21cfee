"""Random numbers without state: (key, counter) → the same number in every process, on every device, in any order.

Integers are mixed by the finaliser of SplitMix64, in 64-bit arithmetic that wraps around.
Source: Steele, Lea, Flood, OOPSLA 2014, "Fast splittable pseudorandom number generators", figure 16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt64Array = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def mix(values: UInt64Array) -> UInt64Array:
    """Scrambles 64-bit integers, one to one; a changed bit changes every bit with probability ½.

    Args:
        values: Any shape, at least one dimension (NumPy warns of wrapping scalars).

    Returns:
        The same shape.
    """
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def combine(*words: ArrayLike) -> UInt64Array:
    """Hashes a tuple of integers; their order counts.

    Returns:
        One 64-bit integer each, in the shape they broadcast to, at least one-dimensional.

    Examples:
        >>> bool((combine(1, 2) == combine(2, 1)).any())
        False
    """
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        # int64 first: NumPy refuses to make unsigned integers of negative Python ones
        number = (
            word if isinstance(word, np.ndarray) and word.dtype == np.uint64 else np.asarray(word, np.int64)
        )
        state = mix(state + mix(np.atleast_1d(number).astype(np.uint64) + _GOLDEN) + _GOLDEN)
    return state


def uniforms(keys: UInt64Array, stream: int, count: int) -> NDArray[np.float64]:
    """Draws numbers between 0 and 1, 1 excluded.

    Args:
        keys: Any shape.
        stream: Purpose of the numbers; different streams of a key are independent.
        count: Numbers for each key.

    Returns:
        The keys' shape and a last dimension of ``count``.
    """
    bits = combine(keys[..., None], stream, np.arange(count))
    return (bits >> np.uint64(11)) * 2.0**-53
