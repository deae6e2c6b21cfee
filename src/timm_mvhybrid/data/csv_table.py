"""CSV → rows, whose columns and values were checked."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ..runtime.errors import DataError

# what pandas writes for missing values that became strings
_MISSING = ("", "nan", "<na>")


def read_csv(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a table, a dictionary a row; values are stripped, and cells that a row lacks at its end are empty.

    Raises:
        DataError: If the file cannot be read as a table, lacks a column, a row has more cells than the header, or a
            value of these columns is empty or NaN.
    """
    rows = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="", strict=True)
            for found in reader:
                # one comma too many moves every cell after it into the wrong column
                if any(cell.strip() for cell in found.pop(None, ())):
                    raise DataError(f"{file}: line {reader.line_num} has more cells than the header")
                row = {key: value.strip() for key, value in found.items() if key}
                for column in columns:
                    if column not in row:
                        raise DataError(f"{file}: lacks the column '{column}'; it has {', '.join(row)}")
                    if row[column].lower() in _MISSING:
                        raise DataError(f"{file}: line {reader.line_num} has no '{column}'")
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file}: cannot be read as a CSV ({getattr(error, 'strerror', None) or error})"
        ) from error
    return rows
