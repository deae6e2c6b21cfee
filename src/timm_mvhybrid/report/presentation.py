"""How the results of a task are shown: what every task gets, and what a task may say better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from .result import Metric, Result
from .table import Cell, Table, mark_best, number_cell, text_cell

SPREAD = "mean ± standard deviation over folds"


@dataclass(frozen=True, kw_only=True)
class Value:
    """One number of a comparison.

    Attributes:
        value: The number; None where there is none.
        spread: Shown after ±.
        higher: Whether higher is better.
        digits: Decimals.
    """

    value: float | None
    spread: float | None = None
    higher: bool = True
    digits: int = 3


Values = dict[tuple[str, str], Value]
"""(setting, label of the metric) → number."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A column of published numbers beside measured ones.

    Attributes:
        label: Heading of the column.
        source: Where the numbers were published, and what they were measured on.
        values: The numbers.
    """

    label: str
    source: str
    values: Values = field(default_factory=dict)


class Presentation:
    """Tables and charts of a task; everything has a default, so that a task says only what it knows better.

    Attributes:
        name: Name of the task.
        title: Heading of its page; the name by default.
        setting: Heading of the column of protocols.
        protocols: Protocol → what it is called; others are called by their names.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    setting: ClassVar[str] = "Setting"
    protocols: ClassVar[Mapping[str, str]] = {}

    def heading(self, result: Result) -> str:
        """Names the page: the task's title and the data."""
        return f"{self.title or result.task.replace('_', ' ').capitalize()}: {result.dataset}"

    def protocol(self, name: str) -> str:
        """Says what a protocol is called."""
        return self.protocols.get(name, name)

    def caption(self, result: Result) -> str:
        """Says what the table of scores shows."""
        return f"{self.title or result.task.replace('_', ' ').capitalize()} of {result.dataset}; {SPREAD}."

    def headline(self, result: Result) -> Table:
        """Makes the first table: a row for each model and protocol, a column for each metric.

        Args:
            result: The result.

        Returns:
            The table, the best of each protocol marked.
        """
        return scores_table(result, self, list(result.metrics))

    def tables(self, result: Result) -> list[Table]:
        """Makes the task's own tables, shown after the scores."""
        return []

    def sections(self, result: Result) -> list[str]:
        """Makes the task's charts, as sections of the page."""
        return []

    def groups(self, results: Sequence[Result]) -> list[list[Result]]:
        """Divides results into those that one table may hold."""
        return [list(results)]

    def comparison_caption(self, results: Sequence[Result]) -> str:
        """Says what a table of several results shows."""
        return f"{self.title or results[0].task.replace('_', ' ').capitalize()}; {SPREAD}."

    def values(self, result: Result) -> dict[str, Values]:
        """Takes the numbers that are put beside those of other results.

        Args:
            result: The result.

        Returns:
            Model → its numbers.
        """
        found: dict[str, Values] = {}
        for one in result.summaries:
            metric = metric_of(result, one.metric)
            found.setdefault(one.model, {})[self.protocol(one.protocol), metric.label] = Value(
                value=one.mean,
                spread=one.std if one.num_folds > 1 else None,
                higher=metric.higher,
                digits=metric.digits,
            )
        return found

    def references(self, results: Sequence[Result]) -> list[Reference]:
        """Looks up published numbers for results of one table."""
        return []

    def comparison_sections(self, results: Sequence[Result]) -> str:
        """Draws several results in one chart; HTML, or nothing."""
        return ""


def metric_of(result: Result, name: str) -> Metric:
    """Looks up how a metric is shown; one that the result does not describe goes by its name."""
    return result.metrics.get(name) or Metric(label=name.replace("_", " "))


def scores_table(
    result: Result,
    looks: Presentation,
    metrics: Sequence[str],
    caption: str | None = None,
    more_rows: Sequence[tuple[Cell, ...]] = (),
) -> Table:
    """Makes a table of scores, a row for each model and protocol.

    Args:
        result: The result.
        looks: How its task is shown.
        metrics: The columns.
        caption: What the table shows; None takes the task's.
        more_rows: Rows below.
    """
    rows: list[tuple[Cell, ...]] = []
    for protocol in result.protocols:
        models = result.models_of(protocol)
        columns = []
        num_folds = 1
        for name in metrics:
            metric, cells = metric_of(result, name), []
            for model in models:
                found = result.summary(model, protocol, name)
                if found is None:
                    cells.append(number_cell(None))
                    continue
                num_folds = found.num_folds
                cells.append(
                    number_cell(found.mean, metric.digits, found.std if found.num_folds > 1 else None)
                )
            columns.append(mark_best(cells, higher=metric.higher))
        label = looks.protocol(protocol)
        if num_folds > 1:
            label = f"{label}, {num_folds} folds"
        rows += [
            (text_cell(model), text_cell(label), *(column[index] for column in columns))
            for index, model in enumerate(models)
        ]
    return Table(
        name="scores",
        caption=looks.caption(result) if caption is None else caption,
        columns=("Model", looks.setting, *(metric_of(result, name).label for name in metrics)),
        rows=(*rows, *more_rows),
        num_text_columns=2,
    )


_REGISTERED: dict[str, Presentation] = {}
_PLAIN = Presentation()


def register_presentation(looks: Presentation) -> None:
    """Makes a task's own tables and charts known to everything that shows results.

    Args:
        looks: The presentation; replaces one of the same name.
    """
    _REGISTERED[looks.name] = looks


def presentation_of(result: Result) -> Presentation:
    """Finds how a result is shown; a task that is not registered gets the tables that every task has."""
    return _REGISTERED.get(result.task, _PLAIN)
