"""What is known of each slide of an embedded cohort: ``cohort.jsonl``, one line for each time that a slide was tried."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..runtime.atomic_file import claimed
from ..runtime.codec import decode, encode, finite
from ..runtime.errors import DataError, TimmMVHybridError
from ..runtime.line_file import LineFile

COHORT_FILE = "cohort.jsonl"
SlideState = Literal["done", "failed", "empty"]


@dataclass(frozen=True, kw_only=True)
class SlideRecord:
    """How one slide of a cohort ended when it was last tried.

    Attributes:
        slide_id: Names the slide within the cohort, and its file, ``<slide_id>.h5``.
        path: The slide as an absolute path; that of the patches where they are all that was given.
        coords: The coordinate h5 that says which tiles are taken, as an absolute path; empty if the slide was cut here.
        state: "done", "failed", or "empty": the slide holds no tissue, so that there is no file.
        attempts: How often it was tried, this time included.
        error: Why it failed or is empty, and what to do; one sentence, empty if it is done.
        warnings: What was noticed of it, a sentence each.
        tiles: Tiles embedded.
        num_corrupt: Tiles left out because they could not be read.
        seconds: Wall-clock time of the last try, from its opening to its file; slides overlap, so that these add up to
            more than the run took.
        file: Name of its file in the cohort's folder; empty unless it is done.
        digests: What the file was made of, and what it is. ``slide`` and ``coords``: fingerprints of these files (see
            ``file_fingerprint``); ``weights``: SHA-256 of the weights; ``tiling`` and ``transform``: hashes of those
            settings; ``file``: SHA-256 of the file. Those that were not reached are absent.
        stamp: Sizes and times of change of ``path`` and ``coords``, by which an unchanged slide is known without reading it.
        worker: Who did it: machine, process and device.
        finished: When, UTC in ISO 8601.
    """

    slide_id: str
    path: str
    coords: str = ""
    state: SlideState
    attempts: int = 1
    error: str = ""
    warnings: tuple[str, ...] = ()
    tiles: int = 0
    num_corrupt: int = 0
    seconds: float = 0.0
    file: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    stamp: str = ""
    worker: str = ""
    finished: str = ""


class RecordLog:
    """The records of a cohort's folder, to which any number of processes on any machines append.

    Args:
        folder: Of the cohort; it exists.

    Raises:
        DataError: A line of ``cohort.jsonl`` is not a record.
        OutputError: The file cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / COHORT_FILE
        self.records: dict[str, SlideRecord] = {}
        """The last record of each slide, as of the last ``refresh``."""
        self._position = 0
        self._num_lines = 0
        self.refresh()

    def refresh(self) -> Mapping[str, SlideRecord]:
        """Reads what was appended since, by this process or others.

        Raises:
            DataError: A line is not a record.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                content = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return self.records
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        # the last line may be half written yet, or for ever
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._num_lines += 1
            record = self._parse(line)
            if record is not None:
                self.records[record.slide_id] = record
        self._position += len(whole)
        return self.records

    def append(self, record: SlideRecord) -> None:
        """Adds a record; it is in the file when this returns.

        Raises:
            OutputError: The disk does not take it.
        """
        line = json.dumps(finite(encode(record)), ensure_ascii=False)
        # appending alone is not safe between the machines of a network file system; its locks are
        with claimed(self.path, wait=True), LineFile(self.path) as file:
            file.write(line)

    def _parse(self, line: bytes) -> SlideRecord | None:
        """Reads a line; None where a killed process left half of one."""
        try:
            value = json.loads(line)
        except ValueError:
            return None
        where = f"{self.path}: line {self._num_lines}"
        try:
            record: SlideRecord = decode(SlideRecord, value, where)
        except TimmMVHybridError as error:
            raise DataError(f"{error}; choose another folder, or move the file away to begin anew") from error
        return record


def read_records(folder: str | Path) -> dict[str, SlideRecord]:
    """Reads how the slides of a cohort ended.

    Args:
        folder: What ``timm-mvhybrid embed ... --output DIR`` wrote.

    Returns:
        Slide id → its last record, in the order in which the slides were first tried; also while others still write.

    Raises:
        DataError: There is no ``cohort.jsonl``, or a line of it is not a record.
    """
    log = RecordLog(folder)
    if not log.path.is_file():
        raise DataError(
            f"{log.path}: missing; give a folder that 'timm-mvhybrid embed ... --output DIR' wrote"
        )
    return log.records
