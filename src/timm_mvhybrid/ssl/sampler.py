"""Which sample stands where: position in the run → sample, for any number of ranks and workers.

The positions of a run count all images that all ranks ever see: step ``t``, rank ``r``, image ``i`` of a batch of ``B`` is
position ``(t · world_size + r) · B + i``. Everything here is a pure function of the seed and the position, so that a run
can be resumed at any step and split over ranks and workers at will.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import PretrainError
from .counter_random import UInt64Array, combine, mix

_ORDER, _SOURCE, _KEY, _CANDIDATE, _ROUND = range(5)


def permute(values: NDArray[np.int64], size: NDArray[np.int64] | int, keys: UInt64Array) -> NDArray[np.int64]:
    """Permutes the numbers below a size, each by itself, so that no table of the permutation is needed.

    Swap-or-not: in each round a number x and its partner k − x are swapped or not by a hashed bit that both share.
    Source: Hoang, Morris, Rogaway, CRYPTO 2012, "An enciphering scheme based on a card shuffle", figure 1. It takes
    6 · log₂ size rounds to resist an adversary; a shuffle needs fewer, 4 · log₂ size and at least 24 here.

    Args:
        values: Numbers from 0 to ``size``, (n,).
        size: Of the permutation; one for all, or (n,).
        keys: Choose the permutation; (1,) for all, or (n,).

    Returns:
        Where the numbers go, (n,).
    """
    sizes = np.asarray(size, dtype=np.int64)
    rounds = max(4 * int(sizes.max()).bit_length(), 24)
    round_keys = combine(keys[None], _ROUND, np.arange(rounds)[:, None])
    # the modulus favours small numbers by size / 2⁶⁴, which no run can notice
    offsets = (round_keys % sizes.astype(np.uint64)).astype(np.int64)
    for round_key, offset in zip(round_keys, offsets, strict=True):
        partners = (offset - values) % sizes
        shared = np.maximum(values, partners).astype(np.uint64)
        bits = mix(round_key + shared) & np.uint64(1)
        values = np.where(bits == 1, partners, values)
    return values


class SampleOrder:
    """The order in which a run draws samples from weighted sources.

    An epoch holds ``round(weight · size)`` draws of each source, at least one, in a random order of its own. The draws of
    a source go on from epoch to epoch through one permutation of it after the other: with weight 1 each epoch holds
    every sample once, with weight 2 twice, and with weight 0.3 no sample comes again before all others have come.

    Args:
        sizes: Samples of each source.
        weights: How often a sample of each source is drawn, relative to samples of weight 1; 1 by default.
        seed: Decides all orders.

    Raises:
        PretrainError: If there is no sample.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None = None, *, seed: int) -> None:
        if not sizes or min(sizes) < 1:
            raise PretrainError(f"every source needs at least one sample, not {list(sizes)}")
        weights = (1.0,) * len(sizes) if weights is None else weights
        self.seed = seed
        self._sizes = np.array(sizes, dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._draws = np.array(
            [max(math.floor(weight * size + 0.5), 1) for size, weight in zip(sizes, weights, strict=True)]
        )
        self._draw_ends = np.cumsum(self._draws)
        self.epoch_length = int(self._draw_ends[-1])
        """Positions of an epoch."""

    def samples(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Finds the samples at positions of the run, (n,) from 0: their indices over all sources, (n,) int64."""
        positions = np.atleast_1d(np.asarray(positions, dtype=np.int64))
        epochs, places = np.divmod(positions, self.epoch_length)
        slots = permute(places, self.epoch_length, combine(self.seed, _ORDER, epochs))
        return self._samples_at(epochs, slots)

    def keys(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Gives each position the key that everything random about its image derives from.

        Positions and not samples have keys, because a sample that is drawn twice shall not look the same twice.
        """
        return combine(self.seed, _KEY, np.asarray(positions, dtype=np.int64)).view(np.int64)

    def candidate(self, position: int, attempt: int) -> int:
        """Chooses what replaces an unreadable sample at a position, at the first attempt (1) and later ones.

        Returns the index of a sample, from the same epoch's draws and thus by the same weights.
        """
        epoch = np.array([position // self.epoch_length])
        bits = combine(self.seed, _CANDIDATE, position, attempt)
        slot = (bits % np.uint64(self.epoch_length)).astype(np.int64)
        return int(self._samples_at(epoch, slot)[0])

    def _samples_at(self, epochs: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.int64]:
        sources = np.searchsorted(self._draw_ends, slots, side="right")
        draws = self._draws[sources]
        sizes = self._sizes[sources]
        passes, places = np.divmod(epochs * draws + slots - (self._draw_ends[sources] - draws), sizes)
        return self._starts[sources] + permute(places, sizes, combine(self.seed, _SOURCE, sources, passes))


def rank_positions(step: int, *, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """Lists the positions of one rank's batch at a step, (batch_size,) int64."""
    return (step * world_size + rank) * batch_size + np.arange(batch_size, dtype=np.int64)
