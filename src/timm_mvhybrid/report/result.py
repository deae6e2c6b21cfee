"""What every task finds: a tidy table of scores, arrays for charts, provenance ↔ results.json.

A number that does not exist (the correlation of a constant gene, the AUROC of a fold with one class) is NaN here and
null in the file.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..probes.resampling import MetricSummary, PairedComparison
from ..runtime.atomic_file import write_file
from ..runtime.codec import decode, dump
from ..runtime.errors import EvaluationError
from ..runtime.provenance import ModelRecord, Provenance
from .earlier_results import from_schema_1

RESULTS_OF_RUN = "evaluations"
"""Folder of a run in which results of its weights are kept."""
SCHEMA_VERSION = 2
"""Raised whenever a field changes its meaning."""


class Score(NamedTuple):
    """One row of the table of scores.

    Attributes:
        model: Label of the model.
        protocol: How train and test parts were made, or the probe, such as ``loso`` or ``knn``.
        fold: Name of the fold.
        unit: What was scored within the fold, such as a gene or a slide; empty for the fold as a whole.
        metric: Name of the metric, such as ``pcc``.
        value: The score; NaN where there is none.
    """

    model: str
    protocol: str
    fold: str
    unit: str
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a metric is shown and read.

    Attributes:
        label: Its name in tables.
        higher: Whether higher is better.
        digits: Decimals.
    """

    label: str
    higher: bool = True
    digits: int = 3


@dataclass(frozen=True, kw_only=True)
class FoldRecord:
    """One fold of one model.

    Attributes:
        model: Label of the model.
        protocol: As in `Score`.
        name: Name of the fold.
        num_train: Items to fit on.
        num_test: Items that were scored.
        facts: What else is known of the fold, such as the penalty that was chosen.
    """

    model: str
    protocol: str
    name: str
    num_train: int
    num_test: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Summary(MetricSummary):
    """One metric of one model under one protocol.

    Attributes:
        model: Label of the model.
        protocol: As in `Score`.
        num_folds: Folds summarised.
    """

    model: str
    protocol: str
    num_folds: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a task found.

    Attributes:
        task: Name of the task.
        dataset: Name of the data, the input folder's or file's by default.
        settings: What must be equal for two results to be compared, such as the gene panel.
        metrics: Metrics in the order in which they are shown.
        models: The backbones in the order given.
        folds: Every fold of every model and protocol.
        scores: Every score.
        summaries: Mean, deviation and interval for each model, protocol and metric.
        comparisons: Every later model against the first.
        arrays: What charts need beside the scores, as the task documents it: lists, dictionaries, numbers.
        provenance: Where the numbers come from.
        notes: What a reader has to know, one sentence each, such as genes that are constant in a fold.
    """

    task: str
    dataset: str
    settings: dict[str, Any]
    metrics: dict[str, Metric]
    models: tuple[ModelRecord, ...]
    folds: tuple[FoldRecord, ...]
    scores: tuple[Score, ...]
    summaries: tuple[Summary, ...]
    comparisons: tuple[PairedComparison, ...]
    arrays: dict[str, Any]
    provenance: Provenance
    notes: tuple[str, ...]

    @cached_property
    def _values(self) -> dict[tuple[str, str, str], dict[str, dict[str, float]]]:
        """(model, protocol, metric) → fold → unit → value."""
        found: dict[tuple[str, str, str], dict[str, dict[str, float]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for model, protocol, fold, unit, metric, value in self.scores:
            found[model, protocol, metric][fold][unit] = value
        return found

    def fold_values(self, model: str, protocol: str, metric: str) -> dict[str, float]:
        """Looks up the scores of whole folds.

        Args:
            model: Label of the model.
            protocol: The protocol.
            metric: The metric.

        Returns:
            Fold → score.
        """
        folds = self._values.get((model, protocol, metric), {})
        return {fold: units[""] for fold, units in folds.items() if "" in units}

    def unit_values(self, model: str, protocol: str, metric: str) -> dict[str, dict[str, float]]:
        """Looks up the scores of what was scored within the folds.

        Args:
            model: Label of the model.
            protocol: The protocol.
            metric: The metric.

        Returns:
            Fold → unit → score.
        """
        folds = self._values.get((model, protocol, metric), {})
        return {fold: {unit: value for unit, value in units.items() if unit} for fold, units in folds.items()}

    def summary(self, model: str, protocol: str, metric: str) -> Summary | None:
        """Looks up mean, deviation and interval.

        Args:
            model: Label of the model.
            protocol: The protocol.
            metric: The metric.

        Returns:
            The summary; None where the metric was not taken.
        """
        return self._summaries.get((model, protocol, metric))

    @cached_property
    def _summaries(self) -> dict[tuple[str, str, str], Summary]:
        return {(one.model, one.protocol, one.metric): one for one in self.summaries}

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols, in the order in which they were run."""
        return tuple(dict.fromkeys(one.protocol for one in self.summaries))

    def models_of(self, protocol: str) -> tuple[str, ...]:
        """Lists the models that were run under a protocol.

        Args:
            protocol: The protocol.

        Returns:
            Labels, in their order.
        """
        return tuple(dict.fromkeys(one.model for one in self.summaries if one.protocol == protocol))

    def to_json(self) -> str:
        """Encodes the result.

        Returns:
            Strict JSON, one line for each field. The table of scores is stored by columns, names once.
        """
        values: dict[str, Any] = {"schema": SCHEMA_VERSION}
        for one in fields(self):
            value = getattr(self, one.name)
            values[one.name] = _to_columns(value) if one.name == "scores" else value
        return dump(values)

    def write(self, path: str | Path) -> None:
        """Writes the file, complete or not at all.

        Args:
            path: Where, such as ``DIR/results.json``.

        Raises:
            OutputError: The disk does not take it.
        """
        write_file(path, self.to_json())


def result_from_json(text: str, where: str = "results.json") -> Result:
    """Decodes the result of any task.

    Args:
        text: What `Result.to_json` wrote, in this version or an earlier one.
        where: The file's name, for messages.

    Returns:
        The result.

    Raises:
        EvaluationError: The text is not such a result.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"{where}: not JSON ({error}); evaluate again") from error
    if not isinstance(values, dict) or not isinstance(values.get("task"), str):
        raise EvaluationError(f"{where}: not a result of 'timm-mvhybrid evaluate'")
    schema = values.pop("schema", None)
    if schema == 1:
        values = from_schema_1(values, where)
    elif schema != SCHEMA_VERSION:
        raise EvaluationError(f"{where}: written by another version of timm-mvhybrid; evaluate again")
    scores = _from_columns(values.pop("scores", None), where)
    result: Result = decode(Result, {**values, "scores": []}, where)
    object.__setattr__(result, "scores", scores)
    return result


def read_result(path: str | Path) -> Result:
    """Reads a results.json, or the one in a folder.

    Args:
        path: The file or its folder.

    Returns:
        The result.

    Raises:
        EvaluationError: There is no such file, or it is not a result.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "results.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error}); name a folder that 'evaluate' wrote"
        ) from error
    return result_from_json(text, str(path))


def read_results(path: str | Path) -> dict[str, Result]:
    """Reads all results that a folder holds: one of a report, or those that a run keeps of its weights.

    Args:
        path: A results.json, the folder of a report, or that of a run.

    Raises:
        EvaluationError: There is none, or one cannot be read.
    """
    path = Path(path)
    resolved = path.resolve()
    kept = sorted((path / RESULTS_OF_RUN).glob("*.json"))
    if kept and not (path / "results.json").exists():
        return {f"{resolved.name}/{file.stem}": read_result(file) for file in kept}
    return {resolved.parent.name if path.is_file() else resolved.name: read_result(path)}


def _to_columns(scores: Sequence[Score]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for position, name in enumerate(Score._fields[:-1]):
        names: dict[str, int] = {}
        codes = [names.setdefault(str(row[position]), len(names)) for row in scores]
        columns[name] = {"names": list(names), "codes": codes}
    columns["value"] = [row.value for row in scores]
    return columns


def _from_columns(columns: Any, where: str) -> tuple[Score, ...]:
    try:
        texts: list[Iterable[str]] = [
            [str(columns[name]["names"][code]) for code in columns[name]["codes"]]
            for name in Score._fields[:-1]
        ]
        values = [float("nan") if value is None else float(value) for value in columns["value"]]
        return tuple(Score(*row) for row in zip(*texts, values, strict=True))
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise EvaluationError(f"{where}: its table of scores is damaged ({error}); evaluate again") from error
