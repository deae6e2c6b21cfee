"""What a fit needs of its cohort: studies to leave out, enough spots, names → checked before time is spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from ..probes.ridge_options import HEST_COMPONENTS, Alpha, Components
from ..probes.splits import Fold, study_folds
from .errors import PredictorError


def check_studies(study_of: NDArray[Any], alpha: Alpha) -> list[Fold]:
    """Makes the folds that leave out one study at a time, before time is spent on them.

    Raises:
        EvaluationError: There are fewer than two studies, or three for a nested choice of the penalty.
    """
    folds = study_folds(study_of)
    if alpha == "nested" and len(folds) < 3:
        raise PredictorError(
            "`alpha='nested'` needs at least three studies, so that two are left when one is left out, and there are "
            f"{len(folds)} ({', '.join(fold.name for fold in folds)}); give `alpha` as a number"
        )
    return folds


def components_of(wanted: Components, dim: int, num_train: int) -> int:
    """Resolves the number of principal components for features of this length and the smallest train part.

    Raises:
        PredictorError: More are asked for than there are.
    """
    most = min(dim, num_train)
    if wanted is None or wanted == "auto":
        return most if wanted is None else min(HEST_COMPONENTS, most)
    if isinstance(wanted, str) or not 1 <= wanted <= most:
        raise PredictorError(
            f"`num_components` is {wanted!r}, and {num_train} training spots × {dim} features allow 1 to {most}; take "
            "fewer, 'auto', or None for all"
        )
    return int(wanted)


def gene_names(genes: Sequence[str] | None, expression: Any, num_genes: int) -> tuple[str, ...]:
    """Takes the names given, those of a data frame's columns, or makes some.

    Raises:
        PredictorError: There is not one for each column, or one occurs twice.
    """
    given = getattr(expression, "columns", None) if genes is None else genes
    names = tuple(f"gene_{index}" for index in range(num_genes)) if given is None else tuple(map(str, given))
    if len(names) != num_genes:
        raise PredictorError(
            f"genes: {len(names)} names for {num_genes} columns of expression; name each once"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PredictorError(f"genes: '{twice}' occurs more than once; make the names unique")
    return names


def check_patients(patient_of: NDArray[Any], study_of: NDArray[Any]) -> None:
    """Makes sure that no patient is in two studies.

    Raises:
        PredictorError: One is.
    """
    study: dict[Any, Any] = {}
    for patient, its in zip(patient_of.tolist(), study_of.tolist(), strict=True):
        if study.setdefault(patient, its) != its:
            raise PredictorError(
                f"patients: '{patient}' has spots in the studies '{study[patient]}' and '{its}', so leaving a study out "
                "would leak; give both studies one name"
            )
