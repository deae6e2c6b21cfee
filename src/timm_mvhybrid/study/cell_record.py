"""What a finished cell leaves: result.json, whole or absent, and the log of its stages, which outlives a killed start."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..report import Result, result_from_json
from ..runtime.atomic_file import write_file
from ..runtime.codec import decode, dump
from ..runtime.line_file import LineFile
from .errors import StudyError

RESULT, LOG, FAILURE = "result.json", "cell.jsonl", "failure.json"
DEFINITION = "study_task.json"
"""Beside a report: what it is of, written last."""
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """A finished cell.

    Attributes:
        cell: Its name.
        variant: Its variant.
        seed: Its seed.
        definition: What identifies its pretraining.
        tasks: Evaluation → what identifies its options.
        settings: The whole configuration of its pretraining.
        num_parameters: Parameters of the backbone.
        num_samples: Patches of its sources.
        data_fingerprint: Of the patches.
        data_group: Cells of the same group must see the same images and crops.
        seen: Pairs of step and what was seen at it, see ``batch_digest``.
        num_images: Images of all steps.
        training_seconds: Time of the steps, without starting and without steps that were done twice.
        seconds: Stage → wall time over all starts, ``other`` among them, what is neither training nor evaluation.
        num_starts: How often it was started.
        curves: Metric → pairs of step and value.
        weights_sha256: Of the exported weights.
        results: Evaluation → its result.
        finished: UTC time, ISO 8601.
    """

    cell: str
    variant: str
    seed: int
    definition: str
    tasks: dict[str, str]
    settings: dict[str, Any]
    num_parameters: int
    num_samples: int
    data_fingerprint: str
    data_group: str
    seen: tuple[tuple[int, int], ...]
    num_images: int
    training_seconds: float
    seconds: dict[str, float]
    num_starts: int
    curves: dict[str, Any]
    weights_sha256: str
    results: dict[str, Any]
    finished: str

    @property
    def images_per_second(self) -> float:
        """Images of the steps over their time."""
        return self.num_images / self.training_seconds if self.training_seconds > 0 else float("nan")

    @property
    def overhead(self) -> float:
        """Fraction of the cell's time that is neither training nor evaluation."""
        total = sum(self.seconds.values())
        return (self.seconds["other"] + self.seconds["export"]) / total if total > 0 else float("nan")

    def result(self, task: str) -> Result:
        """Decodes the result of an evaluation."""
        return result_from_json(json.dumps(self.results[task]), f"cell {self.cell}, {task}")

    def write(self, folder: Path) -> None:
        """Writes ``result.json``, whole or not at all.

        Raises:
            OutputError: The disk does not take it.
        """
        write_file(folder / RESULT, dump({"schema": _SCHEMA, **vars(self)}))


def read_record(folder: Path) -> CellRecord | None:
    """Reads what a finished cell left; None where it is not finished.

    Raises:
        StudyError: The file is damaged.
    """
    path = folder / RESULT
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("schema") != _SCHEMA:
            raise ValueError("it is of another version")
        record: CellRecord = decode(CellRecord, values, str(path))
    except FileNotFoundError:
        return None
    except Exception as error:
        raise StudyError(
            f"{path}: is not the result of a cell ({error}); move the cell's folder away, and it is made again"
        ) from error
    return record


def results_as_json(result: Result) -> dict[str, Any]:
    """Encodes a result without the arrays of its charts, which stand in the cell's own report."""
    values: dict[str, Any] = json.loads(result.to_json())
    return {**values, "arrays": {}}


class CellLog:
    """The stages of a cell with their wall time, over all its starts.

    What a killed start took counts up to the last sign that it left; that it was cut is in the file.

    Args:
        folder: Of the cell.
        last_sign: Gives the time of the last trace of an earlier start, in seconds since the epoch.
    """

    def __init__(self, folder: Path, last_sign: Callable[[], float]) -> None:
        self._path = folder / LOG
        lines = _lines(self._path)
        # every start closes what it began, unless it was killed
        cut = [line for line in lines if line["event"] == "begin"]
        for line in lines:
            if line["event"] in ("end", "cut"):
                cut = [one for one in cut if one["id"] != line["id"]]
        for line in cut:
            self._write("cut", line["id"], line["stage"], max(last_sign() - line["time"], 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a stage, also one that ends with an error."""
        number = len(_lines(self._path))
        start = time.perf_counter()
        self._write("begin", number, name)
        try:
            yield
        finally:
            self._write("end", number, name, time.perf_counter() - start)

    def seconds(self) -> dict[str, float]:
        """Adds up the stages that ended or were cut."""
        total: dict[str, float] = {}
        for line in _lines(self._path):
            if line["event"] in ("end", "cut"):
                total[line["stage"]] = total.get(line["stage"], 0.0) + line["seconds"]
        return total

    def num_begun(self, name: str) -> int:
        """Counts how often a stage was begun."""
        return sum(line["event"] == "begin" and line["stage"] == name for line in _lines(self._path))

    def _write(self, event: str, number: int, stage: str, seconds: float | None = None) -> None:
        line: dict[str, Any] = {"event": event, "id": number, "stage": stage, "time": time.time()}
        if seconds is not None:
            line["seconds"] = seconds
        with LineFile(self._path) as file:
            file.write(json.dumps(line))


def _lines(path: Path) -> list[dict[str, Any]]:
    """Reads the lines that were written whole."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for text in texts:
        try:
            found.append(json.loads(text))
        except ValueError:
            # half a line of a start that was killed
            continue
    return found


def write_failure(folder: Path, message: str) -> None:
    """Notes why a cell failed, for the page.

    Raises:
        OutputError: The disk does not take it.
    """
    write_file(folder / FAILURE, json.dumps({"message": message}, ensure_ascii=False) + "\n")


def read_failure(folder: Path) -> str | None:
    """Reads why the last start of a cell failed; None where it did not."""
    try:
        found: Mapping[str, Any] = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
        return str(found["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
