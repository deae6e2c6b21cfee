"""Tables and gene lists beside the data: CSV or JSON → checked rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from ..data import DataError
from ..runtime.names import unique_positions

# what pandas writes for a missing value that became a text
_MISSING = ("", "nan", "<na>")
SPLIT_COLUMNS = ("sample_id", "patches_path", "expr_path")


def read_csv(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a table.

    Args:
        file: A CSV file with a header.
        columns: Columns there must be.

    Returns:
        One dictionary for each row, values stripped.

    Raises:
        DataError: If the file cannot be read, lacks a column, or a value of these columns is empty or NaN.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = [
                {key: (value or "").strip() for key, value in row.items() if key}
                for row in csv.DictReader(stream)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    for number, row in enumerate(rows, start=2):
        for column in columns:
            if column not in row:
                raise DataError(f"{file}: lacks the column '{column}'; it has {', '.join(row)}")
            if row[column].lower() in _MISSING:
                raise DataError(f"{file}: line {number} has no '{column}'")
    return rows


def read_genes(file: str | Path) -> list[str]:
    """Reads a gene panel as HEST writes it.

    Args:
        file: JSON with a list under `genes`.

    Returns:
        The genes in the file's order.

    Raises:
        DataError: If the file is not such a list, or a gene occurs twice.
    """
    file = Path(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error})") from error
    genes = content.get("genes") if isinstance(content, dict) else None
    if not isinstance(genes, list) or not genes or not all(isinstance(gene, str) for gene in genes):
        raise DataError(f'{file}: must hold {{"genes": ["...", ...]}}')
    unique_positions(file, "gene", genes, "name each gene once")
    return genes


def read_studies(file: str | Path, samples: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Reads which study, and which patient, each sample belongs to.

    Args:
        file: CSV with the columns sample_id, study and, if known, patient.
        samples: Samples that must be in it; others in it are ignored.

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
    patients = {sample: by_sample[sample].get("patient", "") for sample in samples}
    if not any(patients.values()):
        return studies, {}
    study_of: dict[str, str] = {}
    for sample in samples:
        if not patients[sample]:
            raise DataError(
                f"{file}: sample '{sample}' has no patient, others have; fill the column or leave it out"
            )
        if study_of.setdefault(patients[sample], studies[sample]) != studies[sample]:
            raise DataError(
                f"{file}: patient '{patients[sample]}' has samples in the studies '{study_of[patients[sample]]}' and "
                f"'{studies[sample]}', so leaving a study out would leak"
            )
    return studies, patients
