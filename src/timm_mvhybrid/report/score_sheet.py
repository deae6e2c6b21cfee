"""Scores of folds, as a task finds them → the table of scores, its summaries and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..probes.resampling import NUM_RESAMPLES, Interval, PairedComparison, compare_paired, summarise
from ..runtime.codec import encode, finite
from ..runtime.provenance import ModelRecord, collect_provenance
from .result import FoldRecord, Metric, Result, Summary
from .scores import Score


class ScoreSheet:
    """Collects what a task measures, fold by fold, and makes the result of it.

    Example:
        >>> sheet = ScoreSheet({"accuracy": Metric(label="Accuracy")})
        >>> for name, value in (("0", 0.75), ("1", 0.5)):
        ...     sheet.add("vit12", "linear", name, {"accuracy": value}, num_train=8, num_test=4)
        >>> sheet.summaries()[0].mean
        0.625

    Args:
        metrics: The metrics in the order in which they are shown.
        ddof: Delta degrees of freedom of deviations over folds.
        seed: Seed of the bootstrap.
        num_resamples: Resamples of the bootstrap.
        missing_as_zero: Whether a unit without a score counts as zero in its fold's mean, and is resampled so.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        *,
        ddof: int = 0,
        seed: int = 0,
        num_resamples: int = NUM_RESAMPLES,
        missing_as_zero: bool = False,
    ) -> None:
        self.metrics = dict(metrics)
        self.ddof, self.seed, self.num_resamples = ddof, seed, num_resamples
        self.missing_as_zero = missing_as_zero
        self.folds: list[FoldRecord] = []
        self.scores: list[Score] = []
        self._intervals: dict[tuple[str, str, str], Interval | None] = {}
        self._fold_values: dict[tuple[str, str, str], list[float]] = {}
        self._unit_values: dict[tuple[str, str, str], list[Mapping[str, float]]] = {}

    def add(
        self,
        model: str,
        protocol: str,
        fold: str,
        values: Mapping[str, float],
        *,
        num_train: int,
        num_test: int,
        units: Mapping[str, Mapping[str, float]] | None = None,
        intervals: Mapping[str, Interval | None] | None = None,
        **facts: Any,
    ) -> None:
        """Adds a fold.

        Args:
            model: Label of the model.
            protocol: How train and test parts were made, or the probe.
            fold: Name of the fold.
            values: Metric → score of the fold.
            num_train: Items to fit on.
            num_test: Items that were scored.
            units: Metric → unit → score. Where the fold's score of the metric is the mean over the units, folds and
                units are resampled; a metric that has none is resampled over the folds.
            intervals: Metric → interval that the task computed itself, such as one over the queries of a single fold.
            **facts: What else is known of the fold.
        """
        self.folds.append(
            FoldRecord(
                model=model,
                protocol=protocol,
                name=fold,
                num_train=num_train,
                num_test=num_test,
                facts=finite(encode(facts)),
            )
        )
        for metric, value in values.items():
            self.scores.append(Score(model, protocol, fold, "", metric, float(value)))
            self._fold_values.setdefault((model, protocol, metric), []).append(float(value))
        for metric, by_unit in (units or {}).items():
            self.scores += [
                Score(model, protocol, fold, unit, metric, float(value)) for unit, value in by_unit.items()
            ]
            self._unit_values.setdefault((model, protocol, metric), []).append(by_unit)
        for metric, interval in (intervals or {}).items():
            self._intervals[model, protocol, metric] = interval

    def summaries(self) -> tuple[Summary, ...]:
        """Takes mean, deviation and interval of every model, protocol and metric.

        Returns:
            The summaries, in the order in which folds were added.
        """
        found = []
        for key, values in self._fold_values.items():
            model, protocol, metric = key
            table = self._table(key)
            if table is not None and self.missing_as_zero:
                # genes that are not of the fold's panel stay out
                table = np.where(self._measured(key) & np.isnan(table), 0.0, table)
            one = summarise(
                metric,
                values,
                gene_values=table,
                ddof=self.ddof,
                seed=self.seed,
                num_resamples=self.num_resamples,
            )
            found.append(
                Summary(
                    model=model,
                    protocol=protocol,
                    num_folds=len(values),
                    **{**vars(one), "interval": self._intervals.get(key, one.interval)},
                )
            )
        return tuple(found)

    def comparisons(self, metrics: Sequence[str] | None = None) -> tuple[PairedComparison, ...]:
        """Compares every later model with the first, on the same folds.

        Args:
            metrics: The metrics; None takes all.

        Returns:
            The comparisons of protocols with at least two folds.
        """
        found = []
        names = list(self.metrics) if metrics is None else metrics
        for protocol in dict.fromkeys(key[1] for key in self._fold_values):
            models = list(dict.fromkeys(key[0] for key in self._fold_values if key[1] == protocol))
            for model in models[1:]:
                for metric in names:
                    keys = [(one, protocol, metric) for one in (model, models[0])]
                    if any(len(self._fold_values.get(key, ())) < 2 for key in keys):
                        continue
                    tables = [self._table(key) for key in keys]
                    values = [
                        self._fold_values[key] if table is None else table
                        for key, table in zip(keys, tables, strict=True)
                    ]
                    found.append(
                        compare_paired(
                            values[0],
                            values[1],
                            metric=metric,
                            higher=self.metrics[metric].higher,
                            protocol=protocol,
                            model=model,
                            baseline=models[0],
                            seed=self.seed,
                            num_resamples=self.num_resamples,
                        )
                    )
        return tuple(found)

    def result(
        self,
        *,
        task: str,
        dataset: str,
        models: Sequence[ModelRecord],
        options: Any,
        data: Mapping[str, str],
        generated: bool = False,
        settings: Mapping[str, Any] | None = None,
        arrays: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
        compared: Sequence[str] | None = None,
    ) -> Result:
        """Makes the result.

        Args:
            task: Name of the task.
            dataset: Name of the data.
            models: The backbones in the order given.
            options: All options as resolved.
            data: Input file → SHA-256.
            generated: Whether the data say of themselves that they were generated.
            settings: What must be equal for two results to be compared.
            arrays: What charts need besides the scores.
            notes: What a reader has to know, one sentence each.
            compared: Metrics of the comparisons; None takes all.

        Returns:
            The result.
        """
        return Result(
            task=task,
            dataset=dataset,
            settings=finite(encode(dict(settings or {}))),
            metrics=self.metrics,
            models=tuple(models),
            folds=tuple(self.folds),
            scores=tuple(self.scores),
            summaries=self.summaries(),
            comparisons=self.comparisons(compared),
            arrays=finite(encode(dict(arrays or {}))),
            provenance=collect_provenance(seed=self.seed, options=options, data=data, generated=generated),
            notes=tuple(notes),
        )

    def _units(self, key: tuple[str, str, str]) -> list[str]:
        """All units of a protocol, of any model and metric, in one order, so that tables of models can be paired."""
        names: dict[str, None] = {}
        for (_, protocol, metric), folds in self._unit_values.items():
            if (protocol, metric) == key[1:]:
                for fold in folds:
                    names |= dict.fromkeys(fold)
        return sorted(names)

    def _table(self, key: tuple[str, str, str]) -> NDArray[np.float64] | None:
        """Scores of the units, (folds, units); NaN where a fold lacks the unit; None without units."""
        folds = self._unit_values.get(key)
        if folds is None:
            return None
        units = self._units(key)
        return np.array([[fold.get(unit, np.nan) for unit in units] for fold in folds], dtype=np.float64)

    def _measured(self, key: tuple[str, str, str]) -> NDArray[np.bool_]:
        units = self._units(key)
        return np.array([[unit in fold for unit in units] for fold in self._unit_values[key]])
