"""Folder of a run → what the run wrote down about itself, and nothing that it did not."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..report.result import RESULTS_OF_RUN, read_result
from .errors import ExportError
from .evaluations import Evaluation, rows_of_card

CONFIG, METRICS, EVALUATIONS, ENVIRONMENT = (
    "config.json",
    "metrics.jsonl",
    "evaluations.json",
    "environment.json",
)


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """A run's own records; what is absent is empty.

    Args:
        config: The resolved configuration, ``config.json``.
        last_metrics: The last line of ``metrics.jsonl`` up to the exported step.
        evaluations: ``evaluations.json``, a list of objects with metric, value, dataset and protocol, and the results in
            ``evaluations/``.
        environment: ``environment.json``: versions, devices, commit.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    last_metrics: Mapping[str, Any] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> Mapping[str, Any]:
        """What the configuration says about the data, as far as it does; empty where it says nothing."""
        found = self.config.get("data")
        if not isinstance(found, Mapping):
            return {}
        told = {name: value for name, value in found.items() if value not in (None, "", [])}
        return _public({name: value for name, value in told.items() if name not in _READING})

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The rest of the configuration."""
        return _public({name: value for name, value in self.config.items() if name not in ("data", "output")})


# how data were read, not what they are; and names of patients, which are nobody's business
_READING = ("num_workers", "max_corrupt", "hold_out")


def _public(value: Any) -> Any:
    """Reduces absolute paths to their last part: the folders of a machine are nobody else's business."""
    if isinstance(value, Mapping):
        return {name: _public(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_public(part) for part in value]
    if isinstance(value, str) and (
        PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    ):
        return PureWindowsPath(value).name
    return value


def read_run_records(run: Path | None, step: int | None = None, weights: Collection[str] = ()) -> RunRecords:
    """Reads a run's records, without metrics of later steps and without results of other weights (SHA-256).

    Raises:
        ExportError: A record is there but damaged; the message names it.
    """
    if run is None:
        return RunRecords()
    environment = _object(run / ENVIRONMENT)
    return RunRecords(
        config=_object(run / CONFIG),
        last_metrics=_last_metrics(run / METRICS, step),
        evaluations=(*_evaluations(run / EVALUATIONS), *_results(run / RESULTS_OF_RUN, weights)),
        environment=_public(environment),
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Lays nested settings out as dotted names and texts."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = (
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            )
    return flat


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: not readable as JSON ({error}); repair it, or move it away") from error


def _object(path: Path) -> Mapping[str, Any]:
    values = _read(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ExportError(f"{path}: must hold a JSON object; repair it, or move it away")
    return values


def _last_metrics(path: Path, step: int | None) -> Mapping[str, Any]:
    last: Mapping[str, Any] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return last
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot be read ({error}); repair it, or move it away") from error
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line) if line.strip() else None
        except ValueError as error:
            # a run that was killed leaves its last line half
            if number == len(lines):
                break
            raise ExportError(
                f"{path}: line {number} is not JSON ({error}); repair it, or move it away"
            ) from error
        if not isinstance(values, dict) or "event" in values:
            continue
        if step is None or not _number(values.get("step")) > step:
            # what was measured at one step may stand on several lines
            last = {**last, **values} if last.get("step") == values.get("step") else values
    return last


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _evaluations(path: Path) -> tuple[Evaluation, ...]:
    values = _read(path)
    if values is None:
        return ()
    try:
        return tuple(
            Evaluation(
                metric=str(entry["metric"]),
                value=float(entry["value"]),
                dataset=str(entry["dataset"]),
                protocol=str(entry["protocol"]) if entry.get("protocol") else None,
            )
            for entry in values
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ExportError(
            f"{path}: must list objects with metric, value, dataset and protocol ({type(error).__name__}: {error})"
        ) from error


def _results(folder: Path, weights: Collection[str]) -> list[Evaluation]:
    return [row for file in sorted(folder.glob("*.json")) for row in rows_of_card(read_result(file), weights)]
