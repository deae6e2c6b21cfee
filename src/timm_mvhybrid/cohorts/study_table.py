"""Whose the samples of a task are: ``studies.csv``, kept by every sample that is added, and the splits that follow from it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data import read_csv
from ..runtime.atomic_file import claimed, remove_leftovers, write_file
from ..runtime.atomic_folder import OutputFolder
from ..runtime.errors import DataError, ParameterError
from ..runtime.names import unique_positions
from .csv_tables import read_studies
from .hest_writer import split_tables

TABLE_NAME = "studies.csv"
RECORD_NAME = "left_out.json"
"""In the folder of splits: what each of them leaves out, and the mark that they may be written anew."""

LeaveOut = Literal["auto", "study", "patient", "sample"]
_KINDS = ("study", "patient", "sample")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What the splits of a task leave out.

    Attributes:
        left_out: ``study``, ``patient`` or ``sample``; empty if there are no splits.
        groups: Which one, for each split.
        problem: Why there are no splits; empty if there are.
    """

    left_out: str
    groups: tuple[str, ...]
    problem: str = ""


def check_row(task: Path, sample_id: str, study: str, patient: str | None) -> None:
    """Finds out whether a sample fits into the table of its task, before time is spent on it.

    Raises:
        ParameterError: If study or patient is empty, or a patient is known of this sample only, or of all others only.
        DataError: If the table cannot be read, or the patient has samples in another study.
    """
    for name, value in (("study", study), ("patient", patient)):
        # what reads the table takes these for missing
        if value is not None and (value.strip().lower() in ("", "nan", "<na>") or not value.isprintable()):
            raise ParameterError(f"`{name}` is {value!r}; give it a name")
    others = {name: row for name, row in _read(task / TABLE_NAME).items() if name != sample_id}
    known = [name for name, row in others.items() if row.get("patient")]
    if patient is None and known:
        raise ParameterError(
            f"`patient` is missing: {task / TABLE_NAME} names that of sample '{known[0]}'; give it for every sample of a task"
        )
    if patient is not None and others and not known:
        raise ParameterError(
            f"`patient` is '{patient}', and {task / TABLE_NAME} names none of the other samples; add theirs to it, or leave "
            "`patient` out"
        )
    for name, row in others.items():
        if patient is not None and row["patient"] == patient.strip() and row["study"] != study.strip():
            raise DataError(
                f"{task / TABLE_NAME}: patient '{patient}' has the sample '{name}' in the study '{row['study']}', so leaving a "
                f"study out would leak; give both one `study`, or correct `patient`"
            )


def add_sample(
    task: Path, sample_id: str, study: str, patient: str | None, leave_out: LeaveOut = "auto"
) -> Splits:
    """Writes a sample's row and the splits of the task, beside what other processes add meanwhile.

    Args:
        task: The task's folder.
        sample_id: The sample, whose files are complete.
        study: Its study.
        patient: Its patient; None if it is unknown.
        leave_out: What each split leaves out, see ``write_splits``.

    Raises:
        DataError: If the table cannot be read, or does not take the sample, see ``check_row``.
        OutputError: If the disk does not take it.
    """
    table = task / TABLE_NAME
    with _claimed(table):
        check_row(task, sample_id, study, patient)
        rows = _read(table)
        row = {"sample_id": sample_id, "study": study.strip()}
        if patient is not None:
            row["patient"] = patient.strip()
        if any(rows.get(sample_id, {}).get(name) != value for name, value in row.items()):
            rows[sample_id] = {**rows.get(sample_id, {}), **row}
            write_file(table, _as_csv(rows))
        return _write_splits(task, rows, leave_out)


def write_splits(task: str | Path, leave_out: LeaveOut = "auto") -> Splits:
    """Writes the splits of a task: each leaves out one study, patient or sample, and trains on all others.

    Samples are those of ``studies.csv`` whose files are there. Splits that were not written here stay as they are.

    Args:
        task: The task's folder.
        leave_out: ``auto`` leaves out studies if there are two, else patients, else samples.

    Returns:
        What they leave out.

    Raises:
        DataError: If the table cannot be read, or a patient has samples in two studies.
        ParameterError: If ``leave_out`` is unknown.
        OutputError: If the disk does not take them.
    """
    task = Path(task)
    with _claimed(task / TABLE_NAME):
        return _write_splits(task, _read(task / TABLE_NAME), leave_out)


@contextmanager
def _claimed(table: Path) -> Iterator[None]:
    with claimed(table, wait=True):
        remove_leftovers(table)
        remove_leftovers(table.parent / "splits")
        yield


def _write_splits(task: Path, rows: Mapping[str, Mapping[str, str]], leave_out: LeaveOut) -> Splits:
    samples = [name for name in sorted(rows) if _is_complete(task, name)]
    found = _choose(task / TABLE_NAME, samples, leave_out)
    folder = task / "splits"
    if any(folder.glob("*.csv")) and not (folder / RECORD_NAME).exists():
        return Splits(left_out="", groups=(), problem=f"{folder} was not written here, and stays as it is")
    files: dict[str, str] = {}
    group_of = found[1]
    groups = sorted(set(group_of.values()))
    for number, group in enumerate(groups if len(groups) > 1 else []):
        held_out = [name for name in samples if group_of[name] == group]
        files |= split_tables(number, [name for name in samples if name not in held_out], held_out)
    if files:
        record = {"left_out": found[0], "groups": {str(number): group for number, group in enumerate(groups)}}
        files[RECORD_NAME] = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
    if files or folder.exists():
        _replace_folder(folder, files)
    if files:
        return Splits(left_out=found[0], groups=tuple(groups))
    what = f"one {found[0]}" if groups else f"no {found[0]} known"
    return Splits(left_out="", groups=(), problem=f"{what}, and a split leaves one out")


def _replace_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Replaces a folder unless it holds these files and no others."""
    if folder.is_dir():
        present = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.is_file()}
        if present == dict(files):
            return
    with OutputFolder(folder) as output:
        for name, content in files.items():
            output.add(name, content)
        output.finish()


def _choose(table: Path, samples: Sequence[str], leave_out: LeaveOut) -> tuple[str, dict[str, str]]:
    """Decides what splits leave out: its kind, and the group of each sample."""
    if leave_out not in ("auto", *_KINDS):
        raise ParameterError(f"`leave_out` is {leave_out!r}; choose from auto, {', '.join(_KINDS)}")
    if not samples:
        return "sample", {}
    study_of, patient_of = read_studies(table, samples)
    by_kind = dict(zip(_KINDS, (study_of, patient_of, {name: name for name in samples}), strict=True))
    if leave_out != "auto":
        return leave_out, by_kind[leave_out]
    kind = next((kind for kind in _KINDS if len(set(by_kind[kind].values())) > 1), "sample")
    return kind, by_kind[kind]


def _is_complete(task: Path, sample_id: str) -> bool:
    return (task / "patches" / f"{sample_id}.h5").is_file() and (
        task / "adata" / f"{sample_id}.h5ad"
    ).is_file()


def _read(table: Path) -> dict[str, dict[str, str]]:
    """Sample → its row, in the order of the table."""
    if not table.exists():
        return {}
    rows = read_csv(table, ("sample_id", "study"))
    unique_positions(table, "sample", [row["sample_id"] for row in rows], "give each sample one line")
    return {row["sample_id"]: row for row in rows}


def _as_csv(rows: Mapping[str, Mapping[str, str]]) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows))
    return text.getvalue()
