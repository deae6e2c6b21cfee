"""Metrics of a step → one line of strict JSON in ``metrics.jsonl``, and TensorBoard where wanted."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..runtime.atomic_file import write_file, writing
from ..runtime.errors import OutputError, PretrainError
from ..runtime.line_file import LineFile
from .run_directory import RunDirectory

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Appends metrics to the log of a run; each line is in the file when ``write`` returns.

    A step is the number of optimiser steps that were done. Names with a slash, such as ``loss/dino_global``, form
    groups, and a mapping given as ``loss={"dino_global": ...}`` becomes such names. JSON knows no NaN and no
    infinity: they are written as the strings "NaN", "Infinity" and "-Infinity".

    Args:
        run: The folder of the run.
        tensorboard: Write the numbers to TensorBoard's files as well.
        resume_step: The step that the run goes on from: later lines, and a last line that was cut short, are removed.
            None starts a log, and refuses one that holds lines.

    Raises:
        PretrainError: The log is damaged or holds lines where none are expected, or TensorBoard is not installed.
        OutputError: The log cannot be written.
    """

    def __init__(
        self, run: RunDirectory, *, tensorboard: bool = False, resume_step: int | None = None
    ) -> None:
        self.path = run.metrics
        lines = read_lines(self.path)
        if resume_step is None:
            if lines:
                raise PretrainError(
                    f"{self.path}: holds {len(lines)} lines of an earlier run; resume it, or choose another `output`"
                )
            kept = lines
        else:
            kept = [line for line in lines if line["step"] <= resume_step]
        if self.path.exists():
            write_file(self.path, "".join(f"{_as_line(line)}\n" for line in kept))
        self._writer: _TensorBoard | None = None
        if tensorboard:
            # discards, for whoever reads the files, what an interrupted run wrote beyond the step
            purge_step = None if resume_step is None else resume_step + 1
            self._writer = _TensorBoard(run.tensorboard, purge_step)
        self._file = LineFile(self.path)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Closes the log; an error that is under way is the one to report."""
        if error is None:
            self.close()
            return
        with suppress(OutputError):
            self.close()

    def write(self, step: int, **values: Any) -> None:
        """Appends one line.

        Args:
            step: Number of optimiser steps done.
            **values: Numbers, tensors of one element, texts, booleans, None, or mappings of them.

        Raises:
            PretrainError: A value is none of these.
            OutputError: The disk does not take the line.
        """
        flat = dict(_flatten(values))
        line = {"step": int(step), "time": round(time.time(), 3), **flat}
        self._file.write(_as_line(line))
        if self._writer is not None:
            self._writer.write(step, flat)

    def close(self) -> None:
        """Closes the files.

        Raises:
            OutputError: The disk did not take what TensorBoard kept until now.
        """
        try:
            self._file.close()
        finally:
            if self._writer is not None:
                self._writer.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads a log of metrics.

    Args:
        path: The file; one that is absent holds no lines.

    Returns:
        The lines in order, with NaN and infinities as floats; a last line that a killed run left half is left out.

    Raises:
        PretrainError: Another line is damaged; the message names it.
    """
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PretrainError(f"{path}: cannot be read ({error.strerror})") from error
    lines: list[dict[str, Any]] = []
    texts = content.split("\n")
    for number, text in enumerate(texts, start=1):
        # only what a line break ends was written whole
        if number == len(texts) or not text.strip():
            continue
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                raise ValueError("no object with a whole number as its step")
        except ValueError as error:
            raise PretrainError(
                f"{path}: line {number} is damaged ({error}); repair it, or move the file away"
            ) from error
        lines.append(
            {
                name: _NON_FINITE.get(value, value) if isinstance(value, str) else value
                for name, value in line.items()
            }
        )
    return lines


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", _plain(f"{prefix}{name}", value)


def _plain(name: str, value: Any) -> Any:
    """Turns a value into one of JSON's types, tensors and NumPy's numbers included."""
    if isinstance(value, torch.Tensor) or hasattr(value, "dtype"):
        if math.prod(value.shape) != 1:
            raise PretrainError(f"metric {name} must be one number, not of shape {tuple(value.shape)}")
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise PretrainError(f"metric {name} must be a number, a text or None, not {type(value).__name__}")


def _as_line(line: Mapping[str, Any]) -> str:
    strict = {
        name: str(json.dumps(value)) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(strict, ensure_ascii=False, allow_nan=False)


class _TensorBoard:
    """Numbers → TensorBoard's files, which a thread of its own writes some time later.

    Args:
        folder: Where they go.
        purge_step: First step that readers take from here; None for all.

    Raises:
        PretrainError: TensorBoard is not installed.
        OutputError: The disk does not take them.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise PretrainError(
                f"TensorBoard is not installed ({error}); pip install tensorboard, or leave `monitor.tensorboard` off"
            ) from error
        self._folder = folder
        # what its thread meets is raised by its next call here, and would be printed with a traceback as well
        self._excepthook, threading.excepthook = threading.excepthook, self._report
        with self._guarded():
            self._writer = SummaryWriter(log_dir=str(folder), purge_step=purge_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Hands the numbers of a step over."""
        with self._guarded():
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        with self._guarded():
            self._writer.close()
        threading.excepthook = self._excepthook

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with writing(self._folder):
                yield
        except OutputError:
            threading.excepthook = self._excepthook
            raise

    def _report(self, arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            self._excepthook(arguments)
