"""Ridge probe over left-out studies beside HEST's recipe run fold by fold with scikit-learn."""

from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from timm_mvhybrid.evaluate import Fold, RidgeFold, expression_metrics, ridge_folds, study_folds

from .agreement import DisagreementError
from .goals import Goal
from .measure import Contender, Effort, measure
from .report import Report, Table, format_ratio, format_seconds
from .settings import Settings

OURS = "ours, sums over spots, LSQR's early stopping"
EXACT = "ours, sums over spots, solved exactly"
RECIPE = "scikit-learn, HEST's recipe fold by fold"
LIMITS = {OURS: 1e-4, EXACT: 1e-2}
"""Largest difference of a gene's correlation from the recipe's."""
NUM_STUDIES = 8

GOALS = [Goal(figure=f"time, {RECIPE} / {name}", relation="≥", bound=5) for name in (OURS, EXACT)]
SOLVERS = {OURS: "shared", EXACT: "exact", RECIPE: "recipe"}

Problem = tuple[NDArray[np.float32], NDArray[np.float64], list[Fold], int]
"""Embeddings, targets, folds, principal components."""


def run(settings: Settings) -> Report:
    """Checks that all give the same correlations on one fold, then times all folds.

    Args:
        settings: The options.

    Returns:
        The report.
    """
    problem = _problem(*((400, 32, 10, 8) if settings.quick else (20_000, 384, 200, 256)))
    X, y, folds, components = problem
    with threadpool_limits(settings.threads):
        errors = _check_agreement((X, y, folds[:1], components))
        contenders = [Contender(name=name, call=partial(_predict, name, problem)) for name in SOLVERS]
        # a round of the recipe takes minutes, beside which the spread of the machine is nothing
        effort = settings.effort() if settings.quick else Effort(budget_s=0.0, min_rounds=1, warmups=0)
        times = measure(contenders, effort)
    ratios = {f"time, {RECIPE} / {name}": times.ratio(RECIPE, name) for name in (OURS, EXACT)}
    return Report(
        name="evaluation",
        title=(
            f"Ridge probe on a CPU, spots × features × genes = {len(X)} × {X.shape[1]} × {y.shape[1]}, "
            f"{components} components, {NUM_STUDIES} left-out studies"
        ),
        method=(
            "Correlations of every gene agreed with the recipe's on the first fold before the timing, within "
            f"{LIMITS[OURS]:g} with early stopping and {LIMITS[EXACT]:g} without. One process, interleaved rounds."
        ),
        figures=ratios,
        goals=GOALS,
        tables=[
            Table(
                title=f"All {NUM_STUDIES} folds, {len(times.seconds[OURS])} rounds",
                columns=[
                    "",
                    "ms",
                    "quartiles",
                    "time / ours",
                    "quartiles",
                    "difference of a gene's correlation",
                ],
                rows=[
                    [
                        name,
                        *format_seconds(times.spread(name)),
                        *format_ratio(times.ratio(name, OURS)),
                        f"{errors[name]:.1e}" if name in errors else "",
                    ]
                    for name in SOLVERS
                ],
            )
        ],
        judged=not settings.quick,
    )


def _problem(num_spots: int, dim: int, num_genes: int, num_components: int) -> Problem:
    """Draws embeddings of a few strong directions and noise, shifted by study, and counts that follow them."""
    rng = np.random.default_rng(0)
    study = np.arange(num_spots) * NUM_STUDIES // num_spots
    latent = rng.normal(size=(num_spots, dim // 8))
    X = latent @ rng.normal(size=(dim // 8, dim)) + rng.normal(size=(num_spots, dim))
    X += rng.normal(size=(NUM_STUDIES, dim))[study]
    drive = latent @ rng.normal(size=(dim // 8, num_genes)) / np.sqrt(dim // 8)
    y = np.log1p(rng.poisson(np.exp(0.6 * drive + 1)).astype(np.float64))
    return X.astype(np.float32), y, study_folds(study), num_components


def _predict(name: str, problem: Problem) -> list[RidgeFold]:
    X, y, folds, components = problem
    return ridge_folds(X, y, folds, num_components=components, solver=SOLVERS[name])  # type: ignore[arg-type]


def _check_agreement(problem: Problem) -> dict[str, float]:
    """Compares correlations, raising where they differ."""
    _, y, (fold,), _ = problem
    pcc = {
        name: expression_metrics(y[fold.test], _predict(name, problem)[0].prediction).pcc_per_gene
        for name in SOLVERS
    }
    errors = {name: float(np.abs(pcc[name] - pcc[RECIPE]).max()) for name in LIMITS}
    for name, error in errors.items():
        # a NaN must not pass
        if not error <= LIMITS[name]:
            raise DisagreementError(
                f"{name}: a gene's correlation is off by {error:.2g}, allowed {LIMITS[name]:.2g}"
            )
    return errors
