"""Counts of several slides → the genes to predict."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import EvaluationError
from ..runtime.extras import require

PanelMethod = Literal["hvg", "mean", "hmhvg"]
# HEST's own name of the same panel
_SYNONYMS = {"var": "hvg"}
_NOT_GENES = ("BLANK", "Control")
_MIN_CELLS = 0.1
_HOUSEKEEPING = ("MT", "mt", "RPS", "RPL")


def select_genes(
    counts_per_slide: Sequence[Any],
    names_per_slide: Sequence[Sequence[str]],
    method: PanelMethod = "hvg",
    k: int = 50,
    *,
    min_cells: float = _MIN_CELLS,
    n_top_per_slide: int = 2000,
) -> list[str]:
    """Chooses the genes to predict.

    - ``hvg`` and ``mean``: genes present in at least the fraction ``min_cells`` of the spots of every slide, without names
      that contain BLANK or Control; over all spots stacked, the ``k`` most variable ones by scanpy's
      ``highly_variable_genes`` on float32 log1p counts, in the order of the stack, or the ``k`` of the highest mean
      count, highest first.
    - ``hmhvg``, highly variable and highly expressed: the union over slides of the ``n_top_per_slide`` most variable
      genes after normalisation, without names that start with MT, mt, RPS or RPL; of these, on raw counts, the
      intersection of the N highest means and the N highest standard deviations, for the smallest N that gives ``k``.

    In float32 a constant gene has a tiny variance, and where no other gene has its mean ``hvg`` may choose it, as the
    recipe does; ``select_at_most`` leaves such genes out first.

    Source: HEST-Library ``get_k_genes`` (hvg as its 'var', mean) and Stem's gene selection (hmhvg).

    Args:
        counts_per_slide: Raw counts, (spots, genes) for each slide; NumPy or SciPy sparse.
        names_per_slide: Gene names of each slide's columns.
        method: The recipe.
        k: Number of genes.
        min_cells: Fraction of spots, 0 to 1, rounded up to spots; 0 keeps every gene.
        n_top_per_slide: For ``hmhvg``.

    Returns:
        Gene names; ``hmhvg`` returns k + 1 where the last N adds two genes at once, as the original does.

    Raises:
        EvaluationError: If fewer than ``k`` genes are left, shapes do not fit, a name occurs twice in a slide, or
            scanpy is not installed.
    """
    method = _SYNONYMS.get(method, method)  # type: ignore[assignment]
    if method not in get_args(PanelMethod):
        raise EvaluationError(
            f"unknown gene panel '{method}'; choose from {', '.join(get_args(PanelMethod))}"
        )
    if k < 1 or not 0 <= min_cells <= 1:
        raise EvaluationError(f"k must be at least 1 and min_cells from 0 to 1, not {k} and {min_cells}")
    slides = _check(counts_per_slide, names_per_slide)
    if method == "hmhvg":
        return _high_mean_high_variance(slides, k, n_top_per_slide)
    names = _measured_genes(slides, min_cells)
    if len(names) < k:
        raise EvaluationError(
            f"{k} genes wanted, {len(names)} are present in {min_cells:.0%} of the spots of each of {len(slides)} "
            "slides; ask for fewer, or lower min_cells"
        )
    if method == "mean":
        total = np.sum([_column_sums(_columns(counts, own, names)) for counts, own in slides], axis=0)
        # a stable sort keeps the order of the stack among equal means, as pandas' nlargest does
        return [names[index] for index in np.argsort(-total, kind="stable")[:k]]
    stacked = np.concatenate([_dense(_columns(counts, own, names), np.float32) for counts, own in slides])
    chosen = _highly_variable(stacked, names, k, normalise=False)
    return [name for name in names if name in chosen][:k]


def select_at_most(
    counts_per_slide: Sequence[Any], names_per_slide: Sequence[Sequence[str]], k: int = 50
) -> list[str]:
    """Chooses by ``hvg``, among the genes that vary; all of these where there are not more than ``k``.

    Raises:
        EvaluationError: If no gene that is in enough spots of every slide varies.
    """
    slides = _check(counts_per_slide, names_per_slide)
    names = _measured_genes(slides, _MIN_CELLS)
    varying: list[str] = []
    if names:
        parts = [_columns(counts, own, names) for counts, own in slides]
        lowest = np.min([_dense(part.min(axis=0), np.float64).ravel() for part in parts], axis=0)
        highest = np.max([_dense(part.max(axis=0), np.float64).ravel() for part in parts], axis=0)
        varying = [name for name, low, high in zip(names, lowest, highest, strict=True) if low < high]
    if not varying:
        raise EvaluationError(
            f"no gene is present in {_MIN_CELLS:.0%} of the spots of each of {len(slides)} slides and varies between "
            "spots; check that these are the counts of these spots, under the same gene names everywhere"
        )
    if len(varying) <= k:
        return varying
    return select_genes(
        [_columns(counts, own, varying) for counts, own in slides], [varying] * len(slides), k=k
    )


def _check(
    counts_per_slide: Sequence[Any], names_per_slide: Sequence[Sequence[str]]
) -> list[tuple[Any, list[str]]]:
    if len(counts_per_slide) == 0 or len(counts_per_slide) != len(names_per_slide):
        raise EvaluationError(
            f"counts of {len(counts_per_slide)} slides and names of {len(names_per_slide)}; each slide needs both"
        )
    slides = []
    for index, (counts, given) in enumerate(zip(counts_per_slide, names_per_slide, strict=True)):
        names = [str(name) for name in given]
        if getattr(counts, "ndim", 0) != 2 or counts.shape[1] != len(names):
            raise EvaluationError(
                f"slide {index}: counts of shape {getattr(counts, 'shape', None)} for {len(names)} gene names"
            )
        twice = [name for name, number in Counter(names).items() if number > 1]
        if twice:
            raise EvaluationError(
                f"slide {index}: gene '{twice[0]}' occurs more than once; make the names unique "
                "(AnnData.var_names_make_unique), or add its columns together"
            )
        slides.append((counts, names))
    return slides


def _columns(counts: Any, names: list[str], wanted: Sequence[str]) -> Any:
    position = {name: index for index, name in enumerate(names)}
    return counts[:, [position[name] for name in wanted]]


def _dense(counts: Any, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    converted = counts.astype(dtype)
    dense: NDArray[Any] = converted.toarray() if hasattr(converted, "toarray") else np.asarray(converted)
    return dense


def _column_sums(counts: Any) -> NDArray[np.float64]:
    """Sums over spots in float64: SciPy sums a sparse matrix in its own type, whatever ``dtype`` says."""
    return np.asarray(counts.astype(np.float64).sum(axis=0)).ravel()


def _measured_genes(slides: list[tuple[Any, list[str]]], min_cells: float) -> list[str]:
    """Finds the genes that enough spots of every slide have."""
    common: list[str] | None = None
    for counts, names in slides:
        num_present = np.asarray((counts > 0).sum(axis=0)).ravel()
        kept = [
            name
            for name, number in zip(names, num_present, strict=True)
            if number >= np.ceil(min_cells * counts.shape[0])
        ]
        # one slide keeps its own order; the intersection of several is sorted, as NumPy's is
        common = kept if common is None else sorted(set(common) & set(kept))
    return [name for name in common or [] if not any(mark in name for mark in _NOT_GENES)]


def _highly_variable(counts: NDArray[np.float32], names: list[str], k: int, *, normalise: bool) -> set[str]:
    """Runs scanpy's selection, in float32 as the recipes do; changes ``counts``."""
    anndata, scanpy = require("anndata"), require("scanpy")
    data = anndata.AnnData(counts)
    data.var_names = names
    with warnings.catch_warnings():
        # scanpy's own code uses deprecated parts of pandas and anndata; no number depends on them
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        if normalise:
            scanpy.pp.filter_cells(data, min_counts=1)
            scanpy.pp.filter_genes(data, min_counts=1)
            scanpy.pp.normalize_total(data)
        scanpy.pp.log1p(data)
        scanpy.pp.highly_variable_genes(data, n_top_genes=min(k, data.n_vars))
    return set(data.var_names[data.var["highly_variable"]])


def _high_mean_high_variance(slides: list[tuple[Any, list[str]]], k: int, n_top_per_slide: int) -> list[str]:
    shared = set.intersection(*(set(names) for _, names in slides))
    # the first slide's order is the one in which ties are broken
    common = [name for name in slides[0][1] if name in shared]
    if not common:
        raise EvaluationError(
            f"{len(slides)} slides have no gene in common; check that all use the same gene names"
        )
    union: set[str] = set()
    for counts, names in slides:
        matrix = _dense(_columns(counts, names, common), np.float32)
        union |= _highly_variable(matrix, common, n_top_per_slide, normalise=True)
    candidates = [name for name in sorted(union) if not name.startswith(_HOUSEKEEPING)]
    if len(candidates) < k:
        raise EvaluationError(
            f"{k} genes wanted, {len(candidates)} are among the {n_top_per_slide} most variable of a slide and not "
            "mitochondrial or ribosomal; ask for fewer, or raise n_top_per_slide"
        )
    stacked = np.concatenate(
        [_dense(_columns(counts, names, candidates), np.float64) for counts, names in slides]
    )
    by_mean = np.argsort(-stacked.mean(axis=0), kind="stable")
    by_std = np.argsort(-stacked.std(axis=0), kind="stable")
    for num in range(k, len(candidates) + 1):
        both = set(by_mean[:num]) & set(by_std[:num])
        if len(both) >= k:
            break
    return [name for index, name in enumerate(candidates) if index in both]
