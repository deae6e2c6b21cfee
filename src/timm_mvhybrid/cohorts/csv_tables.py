"""Tables and gene lists: CSV or JSON → checked rows."""

from __future__ import annotations

import csv
import gzip
import json
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path

from ..data import DataError, read_csv
from ..runtime.names import unique_positions

GZIP_MAGIC = b"\x1f\x8b"
"""How compressed files begin, whatever they are called."""
PATIENT_COLUMNS = ("patient", "group")
"""Names of the column of what must not be split, where images or samples are listed."""
SPLIT_COLUMNS = ("sample_id", "patches_path", "expr_path")


def read_text(file: Path, kind: str = "table") -> str:
    """Reads a text, plain or compressed by gzip, whatever its name says; raises DataError where that fails."""
    try:
        content = file.read_bytes()
        return (gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: cannot be read as a {kind} ({reason})") from error


def read_tabs(file: Path) -> list[list[str]]:
    """Reads a table with tabs, see ``read_text``; rows without cells are left out.

    Raises:
        DataError: If the file cannot be read as such a table.
    """
    try:
        return [row for row in csv.reader(read_text(file).splitlines(), delimiter="\t", strict=True) if row]
    except csv.Error as error:
        raise DataError(f"{file}: cannot be read as a table ({error})") from error


def patients(
    file: Path, rows: Sequence[dict[str, str]], noun: str, name: str, columns: Sequence[str] = ("patient",)
) -> list[str]:
    """Takes the patient of each row, or empty strings; raises DataError where some rows have one and others do not."""
    column = next((column for column in columns if rows and column in rows[0]), None)
    if column is None:
        return [""] * len(rows)
    found = [row[column] for row in rows]
    if any(found) and not all(found):
        missing = rows[found.index("")][name]
        raise DataError(
            f"{file}: {noun} '{missing}' has no {column}, others have; fill the column or leave it out"
        )
    return found


def read_genes(file: str | Path) -> list[str]:
    """Reads a gene panel as HEST writes it, or a text file (``.txt``) with one gene in each line.

    Raises:
        DataError: If it is another file, names no gene, or one twice.
    """
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".txt":
            content = {"genes": [line.strip() for line in text.splitlines() if line.strip()]}
        else:
            content = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON, or as .txt ({error})") from error
    genes = content.get("genes") if isinstance(content, dict) else None
    if not isinstance(genes, list) or not genes or not all(isinstance(gene, str) for gene in genes):
        raise DataError(f'{file}: must hold {{"genes": ["...", ...]}}, or as .txt one gene in each line')
    unique_positions(file, "gene", genes, "list each gene once")
    return genes


def read_studies(file: str | Path, samples: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Reads which study, and which patient, each sample belongs to.

    The CSV has the columns sample_id, study and, if known, patient; it may list further samples.

    Returns:
        Sample → study, and sample → patient; the latter is empty without that column.

    Raises:
        DataError: If a sample is missing, occurs twice, or a patient has samples in two studies.
    """
    file = Path(file)
    rows = read_csv(file, ("sample_id", "study"))
    unique_positions(file, "sample", [row["sample_id"] for row in rows], "give each sample one line")
    by_sample = {row["sample_id"]: row for row in rows}
    for sample in samples:
        if sample not in by_sample:
            raise DataError(f"{file}: lacks the sample '{sample}'; add its study")
    studies = {sample: by_sample[sample]["study"] for sample in samples}
    known = patients(file, [by_sample[sample] for sample in samples], "sample", "sample_id")
    if not any(known):
        return studies, {}
    patient_of = dict(zip(samples, known, strict=True))
    study_of: dict[str, str] = {}
    for sample, patient in patient_of.items():
        if study_of.setdefault(patient, studies[sample]) != studies[sample]:
            raise DataError(
                f"{file}: patient '{patient}' has samples in the studies '{study_of[patient]}' and "
                f"'{studies[sample]}', so leaving a study out would leak"
            )
    return studies, patient_of


def read_split(path: Path, table: Path, files: dict[str, tuple[Path, Path]]) -> list[str]:
    """Reads the samples of one part of a task's split.

    Args:
        path: The task's folder, from which the table names files.
        table: ``splits/train_<i>.csv`` or ``test_<i>.csv``.
        files: Sample → patch h5 and h5ad; samples that the table alone knows are added.

    Raises:
        DataError: If the table names no sample, a file that is not there, or one file under two names.
    """
    samples = []
    for row in read_csv(table, SPLIT_COLUMNS):
        sample = row["sample_id"]
        named = tuple(_named_file(path, table, sample, row[column]) for column in SPLIT_COLUMNS[1:])
        known = files.get(sample)
        if known is None:
            _check_new(table, sample, named, files)
            files[sample] = (named[0], named[1])
        else:
            for ours, theirs in zip(known, named, strict=True):
                if not ours.samefile(theirs):
                    raise DataError(
                        f"{table}: sample '{sample}' has the file {theirs}, and {ours} in the rest of the task; name one "
                        "of them everywhere"
                    )
        samples.append(sample)
    if not samples:
        raise DataError(f"{table}: names no sample")
    return samples


def _named_file(path: Path, table: Path, sample: str, name: str) -> Path:
    """Finds the file that a split names: relative to the task, absolute, or with Windows separators."""
    spellings = [name] if "\\" not in name else [name, name.replace("\\", "/")]
    trouble = "does not exist"
    for spelling in spellings:
        file = path / spelling
        try:
            if stat.S_ISREG(file.stat().st_mode):
                return file
            trouble = "is not a file"
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:  # another machine's path may be where this user has no access
            trouble = f"cannot be reached ({getattr(error, 'strerror', None) or error})"
    raise DataError(
        f"{table}: names {name}, which {trouble}, for sample '{sample}'; give paths relative to {path}, such as "
        f"patches/{sample}.h5"
    )


def _check_new(
    table: Path, sample: str, named: tuple[Path, ...], files: dict[str, tuple[Path, Path]]
) -> None:
    """Checks that a sample known from a split alone is not one of the folder's under another name."""
    for other, known in files.items():
        if any(ours.samefile(theirs) for ours, theirs in zip(known, named, strict=True)):
            raise DataError(
                f"{table}: sample '{sample}' has a file of sample '{other}', which would be counted twice; call both by "
                "one name"
            )
