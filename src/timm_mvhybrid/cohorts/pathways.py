"""Counts of spots + gene sets → a score for each set and spot: mean z, ssGSEA or AUCell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import DataError
from .gene_sets import GeneSets, MatchedSets, match_sets
from .gene_statistics import (
    GeneStatistics,
    counts_matrix,
    fit_gene_statistics,
    log1p_cpm,
    names_of,
    row_chunks,
)
from .tied_ranks import TiedRanks

PathwayMethod = Literal["mean_z", "ssgsea", "aucell"]

SSGSEA_WEIGHT = 0.25
AUCELL_FRACTION = 0.05
_FEW = 0.7
"""Fraction of the genes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PathwayScores:
    """Scores of gene sets in spots.

    Attributes:
        values: (spots, sets) float64; NaN in spots without counts, of which nothing is known.
        names: The sets, in the order they were given.
        coverage: Fraction of the distinct genes of each set that were measured, (sets,).
        num_genes: Distinct genes of each set, (sets,).
        num_measured: How many of them were measured, (sets,).
        measured: Whether a spot has counts, (spots,); False is where ``values`` is NaN.
        dropped: Name → why a set was not scored.
        num_by_case_alone: Genes of the sets that would match a measured one in upper case, and do not as they are.
        method: How they were scored.
        unit: What a score is measured in.
        statistics: What genes were standardised by; None for methods that rank.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]
    coverage: NDArray[np.float64]
    num_genes: NDArray[np.int64]
    num_measured: NDArray[np.int64]
    measured: NDArray[np.bool_]
    dropped: dict[str, str]
    num_by_case_alone: int
    method: PathwayMethod
    unit: str
    statistics: GeneStatistics | None = None


def pathway_scores(
    counts: Any,
    genes: Sequence[str],
    gene_sets: GeneSets,
    method: PathwayMethod = "mean_z",
    *,
    train: ArrayLike | None = None,
    min_genes: int = 5,
    statistics: GeneStatistics | None = None,
    ignore_case: bool = False,
    normalise: bool = True,
    weight: float = SSGSEA_WEIGHT,
    num_top: int | None = None,
) -> PathwayScores:
    r"""Scores gene sets in every spot.

    - ``mean_z``: the mean of :math:`(\log(1 + \mathrm{CPM}) - \mu_g) / \sigma_g` over the distinct measured genes of a
      set; :math:`\mu_g, \sigma_g` from training spots, and 0 for genes that do not vary there. Comparable between spots.
    - ``ssgsea``: the sum over the ranked genes of the difference of two running sums: of the genes of the set, weighted
      by rank to the power of ``weight``, and of all others, each from 0 to 1. Not divided by a range over spots, which
      would let the spots of a test set change those of training.
    - ``aucell``: the area under the recovery curve of the set among the ``num_top`` highest genes, as a fraction of the
      largest possible.

    Genes of the same count are tied, and most counts are 0. What ranks is the expectation over all orders of tied genes,
    in closed form: the scores do not depend on the order of the columns.

    Source: mean of standardised expression, Lee et al., PLoS Comput Biol 4 (2008) e1000217 in its simplest form; ssGSEA,
    Barbie et al., Nature 462 (2009) 108; AUCell, Aibar et al., Nat Methods 14 (2017) 1083.

    Args:
        counts: Raw counts, (spots, genes); NumPy or SciPy sparse. Sparse counts are never made dense: they are worked
            on some spots at a time. The methods that rank take any finite values.
        genes: Name of each column.
        gene_sets: Name → genes, or the path of a GMT file, see ``read_gmt``.
        method: The score.
        train: True for each spot that mean and deviation of ``mean_z`` come from, or their indices; None takes all, which
            is right only where no spot is held out. The methods that rank within a spot need none, and give the same
            with any.
        min_genes: Distinct measured genes that a set needs; others are listed in ``dropped``.
        statistics: ``mean_z``: mean and deviation of earlier training spots of the same genes, instead of ``train``.
        ignore_case: Whether ``Actb`` and ``ACTB`` are one gene.
        normalise: ``mean_z``: whether to take log1p CPM of raw counts; False where ``counts`` holds normalised values
            already, which no number can tell from counts reliably.
        weight: ``ssgsea``: power of the ranks.
        num_top: ``aucell``: highest genes that count, at least 2; a twentieth of all, rounded up, by default.

    Returns:
        The scores.

    Raises:
        DataError: If counts, names, sets or options cannot be used, or no set has enough measured genes; then the
            message says how many genes would match in upper case.

    Examples:
        >>> counts = np.array([[4, 0, 1], [1, 3, 1], [0, 0, 0]])
        >>> scores = pathway_scores(counts, ["A", "B", "C"], {"AB": ["A", "B", "X"]}, min_genes=2)
        >>> scores.values.shape, scores.coverage.round(2).tolist(), scores.measured.tolist()
        ((3, 1), [0.67], [True, True, False])
    """
    if method not in get_args(PathwayMethod):
        raise DataError(f"`method` is {method!r}; choose from {', '.join(get_args(PathwayMethod))}")
    if method != "mean_z" and statistics is not None:
        raise DataError(
            f"`statistics` have no meaning for `method='{method}'`, which ranks genes within a spot; leave them out"
        )
    if train is not None and statistics is not None:
        raise DataError("`train` and `statistics` exclude each other; give one of them")
    matrix = counts_matrix(counts)
    num_genes = matrix.shape[1]
    # the running sum of the other genes needs one
    limit = num_genes - 1 if method == "ssgsea" else None
    sets = match_sets(
        names_of(genes, num_genes), gene_sets, min_genes=min_genes, max_genes=limit, ignore_case=ignore_case
    )
    if method == "mean_z":
        if statistics is None:
            statistics = fit_gene_statistics(matrix, train=train, normalise=normalise)
        elif len(statistics.mean) != num_genes:
            raise DataError(
                f"`statistics` are of {len(statistics.mean)} genes, `counts` has {num_genes}; give the same genes"
            )
        scorer: _Scorer = _MeanZ(sets, statistics, normalise)
    elif method == "ssgsea":
        scorer = _SingleSample(sets, weight)
    else:
        scorer = _AreaUnderCurve(sets, _checked_top(num_top, num_genes))
    values = np.empty((matrix.shape[0], len(sets.names)))
    measured = np.empty(matrix.shape[0], dtype=np.bool_)
    for spots, chunk in row_chunks(matrix, raw=method == "mean_z" and normalise):
        measured[spots] = np.diff(chunk.indptr) > 0
        values[spots] = scorer(chunk)
    values[~measured] = np.nan
    return PathwayScores(
        values=values,
        names=sets.names,
        coverage=sets.num_measured / sets.num_genes,
        num_genes=sets.num_genes,
        num_measured=sets.num_measured,
        measured=measured,
        dropped=sets.dropped,
        num_by_case_alone=sets.num_by_case_alone,
        method=method,
        unit=scorer.unit,
        statistics=statistics,
    )


def _checked_top(num_top: int | None, num_genes: int) -> int:
    if num_top is None:
        return min(max(-(-num_genes // int(1 / AUCELL_FRACTION)), 2), num_genes)
    if not 2 <= num_top <= num_genes:
        raise DataError(f"`num_top` is {num_top}; give 2 to {num_genes}, the number of measured genes")
    return num_top


class _Scorer(ABC):
    """A chunk of counts → scores of its spots, (spots, sets)."""

    unit: str

    @abstractmethod
    def __call__(self, chunk: Any) -> NDArray[np.float64]: ...


class _MeanZ(_Scorer):
    unit = "mean of standardised log1p CPM over the measured genes of the set"

    def __init__(self, sets: MatchedSets, statistics: GeneStatistics, normalise: bool) -> None:
        self.unit = (
            self.unit if normalise else "mean of standardised values over the measured genes of the set"
        )
        self._normalise = normalise
        scale = np.divide(1.0, statistics.std, out=np.zeros_like(statistics.std), where=statistics.std > 0)
        self._weights = (
            sets.membership.multiply(scale[:, None]).multiply(1.0 / sets.num_measured[None]).tocsr()
        )
        self._offset = self._weights.T @ statistics.mean
        members = np.diff(self._weights.indptr) > 0
        # leaving out the values of other genes pays where these are many
        self._members = members if members.mean() < _FEW else None

    def __call__(self, chunk: Any) -> NDArray[np.float64]:
        if self._normalise:
            chunk = log1p_cpm(chunk, self._members)
        return _product(chunk, self._weights) - self._offset


class _SingleSample(_Scorer):
    # with ascending mean ranks ρ, the sum over positions of the running sum of a set S is Σ_S ρ^(1 + w) / Σ_S ρ^w, and
    # that of the others is the mean of their ρ

    unit = "sum of differences of running sums over the ranked genes"

    def __init__(self, sets: MatchedSets, weight: float) -> None:
        if not 0 <= weight < np.inf:
            raise DataError(f"`weight` is {weight}; give a power of 0 or more")
        self._sets, self._weight = sets, weight

    def __call__(self, chunk: Any) -> NDArray[np.float64]:
        ranks, members = TiedRanks.of(chunk), self._sets.membership
        size, num_genes = self._sets.num_measured, chunk.shape[1]

        def sums(power: float) -> NDArray[np.float64]:
            return ranks.set_sums(ranks.ascending**power, ranks.ascending_of_zeros**power, members, size)

        inside = sums(1 + self._weight) / sums(self._weight)
        outside: NDArray[np.float64] = (num_genes * (num_genes + 1) / 2 - sums(1.0)) / (num_genes - size)
        return inside - outside


class _AreaUnderCurve(_Scorer):
    unit = "fraction of the largest area under the recovery curve"

    def __init__(self, sets: MatchedSets, num_top: int) -> None:
        self._sets, self._top = sets, num_top
        best = np.minimum(sets.num_measured, num_top - 1)
        self._largest = best * num_top - best * (best + 1) / 2

    def __call__(self, chunk: Any) -> NDArray[np.float64]:
        ranks = TiedRanks.of(chunk)
        values = _mean_shortfall(self._top, ranks.before, ranks.block)
        zeros = _mean_shortfall(self._top, ranks.before_zeros, ranks.num_zeros)
        sums = ranks.set_sums(values, zeros, self._sets.membership, self._sets.num_measured)
        area: NDArray[np.float64] = sums / self._largest
        return area


def _mean_shortfall(top: int, before: NDArray[np.float64], block: NDArray[np.float64]) -> NDArray[np.float64]:
    """Averages max(top − rank, 0) over the ranks before + 1 … before + block."""
    counted = np.clip(top - before - 1, 0, block)
    total = counted * (top - before) - counted * (counted + 1) / 2
    mean: NDArray[np.float64] = total / np.maximum(block, 1)
    return mean


def _product(chunk: Any, weights: Any) -> NDArray[np.float64]:
    dense: NDArray[np.float64] = (chunk @ weights).toarray()
    return dense
