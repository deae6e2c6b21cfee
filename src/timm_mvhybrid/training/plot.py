"""``metrics.jsonl`` of runs → curves of their numbers → one picture."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.atomic_file import make_folder, write_file
from ..runtime.errors import PretrainError
from .metrics_log import read_lines
from .run_directory import RunDirectory
from .settings import require_share

_BOOKKEEPING = re.compile(r"step|time|epoch")


@dataclass(frozen=True)
class Curve:
    """One metric of one run.

    Attributes:
        run: Label of the run.
        name: The metric.
        steps: (N,), rising.
        values: (N,), NaN where there is no number.
        breaks: Steps at which the value was NaN or infinite.
    """

    run: str
    name: str
    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    breaks: NDArray[np.float64]


def read_curves(run: RunDirectory, label: str) -> list[Curve]:
    """Reads the numbers of a run's log.

    Returns:
        A curve for each metric that is a number in some line, in the order of their first lines.

    Raises:
        PretrainError: The log is missing, damaged or holds no numbers.
    """
    if not run.metrics.is_file():
        raise PretrainError(f"{run.metrics}: no such log; give the folder of a run")
    points: dict[str, dict[int, float]] = {}
    for line in read_lines(run.metrics):
        for name, value in line.items():
            if _BOOKKEEPING.fullmatch(name) or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            points.setdefault(name, {})[line["step"]] = float(value)
    if not points:
        raise PretrainError(f"{run.metrics}: holds no numbers yet; wait for the run's first lines")
    curves = []
    for name, by_step in points.items():
        steps = np.array(sorted(by_step), dtype=np.float64)
        values = np.array([by_step[int(step)] for step in steps])
        finite = np.isfinite(values)
        curves.append(Curve(label, name, steps, np.where(finite, values, np.nan), steps[~finite]))
    return curves


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Averages each value with its neighbours on both sides; at the ends there are fewer.

    Args:
        values: (N,); NaN stays NaN and counts in no average.
        window: Number of values, rounded up to an odd one.

    Returns:
        (N,).
    """
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(len(values))
    low, high = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    averages = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(known, averages, np.nan)


def run_labels(paths: Sequence[Path]) -> list[str]:
    """Names runs by their folders, and by as many of the folders above as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while depth < max(map(len, parts)) and len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


_NUM_COLUMNS = 3
_PANEL_INCHES = (4.4, 2.75)
_COLOURS = ("#1f5fa8", "#d1572c", "#2f8f5b", "#8a4fa3", "#b8901f", "#3aa3b3", "#b13a6b", "#6b6b6b")
_PLACES = {"total": 0, "other": 2}
_ALARM = "#c00000"
_LINE_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)))


@dataclass(frozen=True)
class Panel:
    """Metrics that are drawn together.

    Attributes:
        title: Above the panel.
        names: Which metrics, a pattern for their whole names.
        unit: At the vertical axis.
        logarithmic: Whether the axis is, where all values are above 0.
        stacked: Whether the curves of a single run are fractions that stand on each other.
        exact: Whether the curves follow a formula, which smoothing would only bend.
        only_if_varied: Whether the panel is left out where no value ever changes, as most runs are.
    """

    title: str
    names: str
    unit: str = ""
    logarithmic: bool = False
    stacked: bool = False
    exact: bool = False
    only_if_varied: bool = False


# the first panel that knows a name takes it
PANELS = (
    Panel("Loss", r"(loss/)?(total|loss|dino_local|dino_global|ibot|koleo|kde)"),
    Panel("Online probe", r".*(knn|expression)_.*"),
    Panel("Effective rank (RankMe)", r".*rankme"),
    Panel("Spread of features (std · √dim)", r".*feature_std"),
    Panel("Teacher entropy, prototype usage", r".*(entropy|usage).*", "fraction of the maximum"),
    Panel("Gradient norm by kind", r"grad_norm_by_kind/.*", logarithmic=True),
    Panel("Gradient norm", r".*grad(ient)?_norm.*", logarithmic=True),
    Panel("Learning rate", r".*(learning_rate|_lr|\blr)", exact=True),
    Panel("Weight decay", r".*weight_decay", exact=True),
    Panel("Teacher momentum", r".*momentum", exact=True),
    Panel("Teacher temperature", r".*temperature", exact=True),
    Panel("Throughput", r".*images_per_second.*", "images/s"),
    Panel("Fraction of time", r".*share_\w+", stacked=True),
    Panel("Loss scale", r".*loss_scale", logarithmic=True, only_if_varied=True),
    Panel("Memory", r".*memory.*", "GiB"),
    Panel("Unreadable patches", r".*corrupt.*", only_if_varied=True),
)


def plot_runs(
    runs: Sequence[str | Path], output: str | Path | None = None, *, smoothing: float = 0.0
) -> Path:
    """Draws every metric of runs over their steps.

    Args:
        runs: Folders of runs; several are drawn over each other, a colour each.
        output: PNG to write; None is ``plots/curves.png`` in the only run.
        smoothing: Fraction of the curve's length, 0 to 1, over which it is averaged; the raw curve stays, faint.

    Raises:
        PretrainError: There is nothing to draw, it is unclear where to, or matplotlib is missing.
        OutputError: The disk does not take the picture.
    """
    require_share("smoothing", smoothing)
    folders = [RunDirectory(run) for run in runs]
    if not folders:
        raise PretrainError("no run was given; name the folder of one")
    if output is None:
        if len(folders) > 1:
            raise PretrainError(
                "several runs are drawn to one file, which needs a name: give `output=FILE.png`"
            )
        target = folders[0].plots / "curves.png"
    else:
        target = Path(output)
        if target.suffix.lower() != ".png":
            raise PretrainError(f"{target}: the picture is a PNG; name it so")
    labels = run_labels([run.path for run in folders])
    curves = [curve for run, label in zip(folders, labels, strict=True) for curve in read_curves(run, label)]
    panels = _arrange(curves)
    make_folder(target.parent)
    write_file(target, _draw(panels, labels, smoothing))
    return target


def _arrange(curves: Sequence[Curve]) -> list[tuple[Panel, list[Curve]]]:
    """Sorts the curves into panels; a metric that no panel knows gets one with those of its group."""
    found: dict[Panel, list[Curve]] = {panel: [] for panel in PANELS}
    for curve in curves:
        panel = next((panel for panel in PANELS if re.fullmatch(panel.names, curve.name)), None)
        if panel is None:
            title = curve.name.split("/")[0]
            panel = Panel(title, re.escape(title))
        found.setdefault(panel, []).append(curve)
    return [
        # the total first, and what is left over last
        (panel, sorted(members, key=lambda curve: _PLACES.get(re.split("[/_]", curve.name)[-1], 1)))
        for panel, members in found.items()
        if members and not (panel.only_if_varied and all(np.ptp(curve.values) == 0 for curve in members))
    ]


def _draw(panels: Sequence[tuple[Panel, list[Curve]]], labels: Sequence[str], smoothing: float) -> bytes:
    """Draws the panels; returns a PNG."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise PretrainError(
            f"drawing needs matplotlib ({error}): pip install 'timm-mvhybrid[pretrain]'"
        ) from error
    num_rows = -(-len(panels) // _NUM_COLUMNS)
    num_columns = min(_NUM_COLUMNS, len(panels))
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(num_columns * width, num_rows * height + 0.35), layout="constrained")
    FigureCanvasAgg(figure)
    colours = {label: _COLOURS[index % len(_COLOURS)] for index, label in enumerate(labels)}
    # one range for all, so that what happens at a step stands at one place in every column
    every_step = np.concatenate([curve.steps for _, curves in panels for curve in curves])
    first, last = float(every_step.min()), float(every_step.max())
    margin = max((last - first) * 0.02, 0.5)
    for number, (panel, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(num_rows, num_columns, number)
        if panel.stacked and len(labels) == 1:
            _stack(axes, curves)
        else:
            _lines(axes, curves, colours, 0.0 if panel.exact else smoothing)
        if panel.logarithmic and all(np.nanmin(curve.values, initial=math.inf) > 0 for curve in curves):
            axes.set_yscale("log")
        axes.set_xlim(first - margin, last + margin)
        _furnish(axes, panel, last_row=number > len(panels) - num_columns)
    if len(labels) == 1:
        figure.suptitle(labels[0], fontsize=12, fontweight="bold")
    else:
        lines = [Line2D([], [], color=colours[label], linewidth=2.5) for label in labels]
        figure.legend(
            lines, labels, loc="outside upper left", ncols=min(len(labels), 6), frameon=False, fontsize=9
        )
    # Agg gives up on noisy lines of 100,000 points unless it draws them in parts
    with rc_context({"agg.path.chunksize": 10_000}):
        content = io.BytesIO()
        figure.savefig(content, dpi=150, format="png")
    return content.getvalue()


def _lines(axes: Any, curves: Sequence[Curve], colours: Mapping[str, str], smoothing: float) -> None:
    """Draws curves: of one run a colour for each metric, of several a colour a run and a style a metric."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    for curve in curves:
        place = names.index(curve.name)
        if len(colours) == 1:
            colour, style, label = _COLOURS[place % len(_COLOURS)], "-", _short(curve.name, names)
        else:
            colour, style, label = colours[curve.run], _LINE_STYLES[place % len(_LINE_STYLES)], "_"
        steps, values = curve.steps, curve.values
        marker = "o" if len(steps) < 30 else ""
        window = round(smoothing * len(values))
        if window > 1:
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.25)
            values, marker = smooth(values, window), ""
        axes.plot(
            steps,
            values,
            color=colour,
            linestyle=style,
            linewidth=1.4,
            marker=marker,
            markersize=3,
            label=label,
        )
        if len(curve.breaks):
            axes.plot(
                curve.breaks,
                np.full(len(curve.breaks), 0.02),
                "v",
                color=_ALARM,
                markersize=5,
                transform=axes.get_xaxis_transform(),
                label="_",
            )
    if any(len(curve.breaks) for curve in curves):
        axes.plot([], [], "v", color=_ALARM, markersize=5, label="not finite")
    if len(colours) > 1 and len(names) > 1:
        # the runs stand in the picture's legend; here are the metrics, in no run's colour
        for place, name in enumerate(names):
            style = _LINE_STYLES[place % len(_LINE_STYLES)]
            axes.plot([], [], color="#444444", linestyle=style, linewidth=1.4, label=_short(name, names))


def _stack(axes: Any, curves: Sequence[Curve]) -> None:
    """Stacks the fractions of one run."""
    steps = np.array(sorted({step for curve in curves for step in curve.steps}))
    rows = [np.nan_to_num(np.interp(steps, curve.steps, np.nan_to_num(curve.values))) for curve in curves]
    names = [curve.name.split("share_")[-1] for curve in curves]
    axes.stackplot(steps, *rows, labels=names, colors=_COLOURS, alpha=0.85, linewidth=0)
    axes.set_ylim(0, max(1.0, float(np.sum(rows, axis=0).max())))


def _furnish(axes: Any, panel: Panel, *, last_row: bool) -> None:
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_ylabel(panel.unit, fontsize=8)
    if last_row:
        axes.set_xlabel("step", fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    if axes.get_yscale() == "linear":
        axes.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=True)
        axes.yaxis.offsetText.set_fontsize(8)
    axes.grid(visible=True, color="#e3e3e3", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1 or "not finite" in names:
        axes.legend(
            handles, names, fontsize=7, framealpha=0.75, edgecolor="none", ncols=2 if len(names) > 4 else 1
        )


def _short(name: str, names: Sequence[str]) -> str:
    """Leaves the group out of a name, where all names of the panel have it."""
    groups = {other.rpartition("/")[0] for other in names}
    return name.rpartition("/")[2] if len(groups) == 1 else name
