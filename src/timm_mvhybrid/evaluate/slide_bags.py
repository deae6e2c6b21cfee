"""What the tasks on slides share: bags of embeddings by one model after the other, where they come from, and charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional, arg

from ..cohorts.bags import SlideTable, bag_folder, read_bags, weights_of_bags
from ..probes.cox import log_rank_p_value
from ..report.drawing import Drawing, chart_style
from ..report.series_looks import curve
from ..report.table import signed
from ..runtime.digest import file_sha256
from ..runtime.errors import EvaluationError, check_seed
from ..runtime.extras import require
from ..runtime.provenance import ModelRecord
from .task import Options, Task

_SIDE = 320
_WIDTH, _HEIGHT = 380, 230


@chart_style()
def roc_curves(slides: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """Draws one ROC curve for each model, the slides of all folds together.

    Args:
        slides: Model → slides; ``positive`` says whether the label is the positive one, ``score`` what the model says
            of it, NaN where there is nothing.

    Returns:
        The SVG, or None if a class is missing.
    """
    drawing = Drawing("ROC curves")
    axes = drawing.panel(0, 0, _SIDE, _SIDE)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for axis, name in ((axes.xaxis, "false positive rate"), (axes.yaxis, "true positive rate")):
        drawing.numbers(axis)
        axis.set_label_text(name)
        drawing.text(axis.label, "tick")
    drawing.mark(axes.plot([0, 1], [0, 1])[0], "chance")
    drawn = {
        model: series
        for series, (model, scored) in enumerate(slides.items())
        if _roc(drawing, axes, model, scored, series)
    }
    drawing.legend(drawn, _SIDE + 24, 4, width=0, kind="curve", corner="upper left")
    return drawing.svg() if drawn else None


def _roc(drawing: Drawing, axes: Any, model: str, slides: Sequence[Mapping[str, Any]], series: int) -> bool:
    probability = np.array([slide["score"] for slide in slides], dtype=np.float64)
    known = np.isfinite(probability)
    truth = np.array([slide["positive"] for slide in slides], dtype=bool)[known]
    probability = probability[known]
    if truth.all() or not truth.any():
        return False
    metrics = require("sklearn.metrics")
    false_positives, true_positives, _ = metrics.roc_curve(truth, probability)
    area = metrics.roc_auc_score(truth, probability)
    note = f"{model}: AUROC {area:.3f} of {len(truth)} slides together"
    drawing.mark(axes.plot(false_positives, true_positives, linewidth=2)[0], curve(series), note)
    return True


@chart_style()
def survival_curves(model: str, patients: Sequence[Mapping[str, Any]], time_unit: str) -> str:
    """Draws Kaplan–Meier curves of high and low risk."""
    groups = {
        "low risk": [patient for patient in patients if not patient["high_risk"]],
        "high risk": [patient for patient in patients if patient["high_risk"]],
    }
    drawing = Drawing(f"Survival of patients at high and low risk by {model}; below, the number at risk")
    axes = drawing.panel(0, 0, _WIDTH, _HEIGHT)
    last = max(patient["time"] for patient in patients)
    axes.set(xlim=(0, last if last > 0 else 1), ylim=(0, 1), ylabel="surviving")
    drawing.text(axes.yaxis.label, "tick")
    drawing.numbers(axes.yaxis)
    times = drawing.numbers(axes.xaxis, 6)
    axes.set_xlabel(f"time, {time_unit}" if time_unit else "time")
    drawing.text(axes.xaxis.label, "tick")
    drawing.legend({name: series for series, name in enumerate(groups)}, 0, -14, kind="curve")
    p_value = log_rank_p_value(
        *([patient[name] for patient in patients] for name in ("event", "time", "high_risk"))
    )
    if math.isfinite(p_value):
        text = f"log-rank p = {signed(f'{p_value:.2g}')}"
        drawing.text(axes.annotate(text, (1, 1), (0, 17), "axes fraction", "offset pixels", ha="right"))
    for series, (name, members) in enumerate(groups.items()):
        if members:
            _survival(drawing, axes, name, members, series)
        _at_risk(drawing, axes, name.split(" ")[0], members, times, -54 - 16 * series)
    return drawing.svg()


def _survival(
    drawing: Drawing, axes: Any, name: str, patients: Sequence[Mapping[str, Any]], series: int
) -> None:
    events = np.array([patient["event"] for patient in patients], dtype=bool)
    ends = np.array([patient["time"] for patient in patients], dtype=float)
    times, surviving = require("sksurv.nonparametric").kaplan_meier_estimator(events, ends)
    # a product of fractions may miss one half by its rounding
    halved = np.flatnonzero(surviving <= 0.5 + 1e-12)
    median = f"median {times[halved[0]]:.4g}" if len(halved) else "median not reached"
    note = f"{name}: {len(patients)} patients, {median}, {surviving[-1]:.2f} at the end"
    steps = axes.step([0, *times], [1, *surviving], where="post", linewidth=2)[0]
    drawing.mark(steps, curve(series), note)
    # a tick for each patient whose observation ended before the event
    censored = ends[~events]
    ticks = axes.plot(
        censored, surviving[np.searchsorted(times, censored)], linestyle="", marker="|", markersize=10
    )[0]
    drawing.mark(ticks, f"{curve(series)} censored", note)


def _at_risk(
    drawing: Drawing,
    axes: Any,
    name: str,
    patients: Sequence[Mapping[str, Any]],
    times: Sequence[float],
    below_px: float,
) -> None:
    def write(text: str, place: tuple[float, float], coordinates: Any, left: float, align: str) -> None:
        drawing.text(
            axes.annotate(text, place, (left, below_px), coordinates, "offset pixels", ha=align), "tick"
        )

    write(name, (0, 0), "axes fraction", -22, "right")
    for time in times:
        num = sum(patient["time"] >= time for patient in patients)
        write(str(num), (time, 0), ("data", "axes fraction"), 0, "center")


Bags = list[NDArray[np.float32]]
PROTOCOL = "patient"
"""Folds of all tasks on slides: no patient is in the train and the test part of a fold."""


@dataclass(frozen=True, kw_only=True)
class SlideOptions:
    """Options of the tasks on slides.

    Attributes:
        num_folds: Folds over patients.
        ddof: Delta degrees of freedom of deviations over folds.
        seed: Seed of folds, training, prototypes and bootstrap.
    """

    num_folds: Annotated[int, arg(metavar="N")] = 5
    ddof: Literal[0, 1] = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class BagOptions:
    """Which embeddings.

    Attributes:
        bags: Folders of <slide_id>.h5 with features (CLAM's feat_dir, TRIDENT) or embeddings (timm-mvhybrid embed), one
            for each model.
    """

    bags: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR...")]


class SlideTask(Task[Options]):
    """A task on bags of embeddings, with folds over patients."""

    setting = "Folds"
    protocols = {PROTOCOL: "by patient"}  # noqa: RUF012 - a constant of the class

    def weights(self, options: Any) -> list[str]:
        """Reads it off the embeddings."""
        return [found for folder in options.bags if (found := weights_of_bags(folder)) is not None]


def read_models(
    folders: Sequence[str | Path], table: SlideTable
) -> Iterator[tuple[ModelRecord, Bags, dict[str, str]]]:
    """Reads the embeddings of one model after the other.

    Yields:
        The model, its bags, (N, D) of each slide, and the files read → SHA-256.

    Raises:
        DataError: A file is missing or holds no embeddings.
        EvaluationError: There is no folder, or two have the same name.
    """
    if not folders:
        raise EvaluationError("no embeddings to evaluate; name a folder of h5 files")
    labels = set()
    for folder in folders:
        bags, model = read_bags(folder, table.slides)
        if model.label in labels:
            raise EvaluationError(
                f"two folders are named '{model.label}'; rename one, because names label the models"
            )
        labels.add(model.label)
        files = {f"{model.label}/{slide}.h5": bag_folder(folder) / f"{slide}.h5" for slide in table.slides}
        yield model, bags, {name: file_sha256(file) for name, file in files.items()}


def by_model(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Groups a result's slides or patients by the model that scored them."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row)
    return found
