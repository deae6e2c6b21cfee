"""Space Ranger's table of positions, CSV with or without a header or parquet → places of spots or bins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError
from ..runtime.extras import require

COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
NAMES = (
    "tissue_positions.parquet",
    "tissue_positions.csv",
    "tissue_positions_list.csv",
    "tissue_positions.csv.gz",
    "tissue_positions_list.csv.gz",
)
"""As versions of Space Ranger call it; the last two are compressed by who spreads the data."""

_BATCH_ROWS = 1 << 17
_KIND = f"Space Ranger's table of positions, with the columns {', '.join(COLUMNS)}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Positions:
    """Places of spots or bins; row and column count the array's, places are in px of the image at full resolution.

    Attributes:
        barcodes: Names, bytes.
        in_tissue: Whether each is in tissue.
        array_row: Row in the array, int64.
        array_col: Column in the array, int64.
        spatial: Centre, (N, 2) float64 as x, y: the table's ``pxl_col_in_fullres`` and ``pxl_row_in_fullres``.
    """

    barcodes: NDArray[np.bytes_]
    in_tissue: NDArray[np.bool_]
    array_row: NDArray[np.int64]
    array_col: NDArray[np.int64]
    spatial: NDArray[np.float64]

    def __len__(self) -> int:
        """Returns the number of spots or bins."""
        return len(self.barcodes)


def find_positions(folder: Path) -> Path:
    """Finds the table in a folder ``spatial``; raises DataError if there is none."""
    found = next((file for name in NAMES if (file := folder / name).is_file()), None)
    if found is None:
        raise DataError(
            f"{folder}: has none of {', '.join(NAMES[:3])}; add the table that Space Ranger wrote, or name it by `positions`"
        )
    return found


def read_positions(path: Path) -> Positions:
    """Reads a whole table.

    Raises:
        DataError: If it cannot be read, lacks a column, holds no rows, a value is not a number, or a barcode repeats.
    """
    parts = list(iterate_positions(path))
    barcodes = np.concatenate([part.barcodes for part in parts])
    ordered = np.sort(barcodes)
    twice = ordered[:-1][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise DataError(f"{path}: barcode '{twice[0].decode()}' occurs more than once; keep one of its rows")
    return Positions(
        barcodes=barcodes,
        in_tissue=np.concatenate([part.in_tissue for part in parts]),
        array_row=np.concatenate([part.array_row for part in parts]),
        array_col=np.concatenate([part.array_col for part in parts]),
        spatial=np.concatenate([part.spatial for part in parts]),
    )


def iterate_positions(path: Path) -> Iterator[Positions]:
    """Yields a table some rows at a time, see ``read_positions``; that no barcode repeats is not checked.

    Raises:
        DataError: If it cannot be read, lacks a column, holds no rows, or a value is not a number.
    """
    batches = _parquet_batches(path) if path.suffix == ".parquet" else _csv_batches(path)
    num_rows = 0
    try:
        for barcodes, columns in batches:
            num_rows += len(barcodes)
            yield _checked(path, barcodes, columns)
    except DataError:
        raise
    except (
        Exception
    ) as error:  # pandas and pyarrow raise errors of their own, of Python and of the operating system
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: is truncated or damaged ({reason}); copy it again: {_KIND}") from error
    if not num_rows:
        raise DataError(f"{path}: has no rows; give {_KIND}")


def _parquet_batches(path: Path) -> Iterator[tuple[NDArray[np.bytes_], dict[str, Any]]]:
    parquet = require("pyarrow.parquet")
    with parquet.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(COLUMNS)):
            yield (
                _barcodes_of(batch.column("barcode")),
                {name: batch.column(name).to_numpy(zero_copy_only=False) for name in COLUMNS[1:]},
            )


def _csv_batches(path: Path) -> Iterator[tuple[NDArray[np.bytes_], dict[str, Any]]]:
    pandas = require("pandas")
    first = pandas.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
    has_header = first[0].strip().lower() == "barcode"
    if has_header:
        _check_columns(path, first)
    elif len(first) != len(COLUMNS):
        raise DataError(f"{path}: has {len(first)} columns and no header; give {_KIND}")
    names = first if has_header else list(COLUMNS)
    tables = pandas.read_csv(
        path,
        header=0 if has_header else None,
        names=names,
        index_col=False,
        usecols=list(COLUMNS),
        dtype={"barcode": str},
        keep_default_na=False,
        chunksize=_BATCH_ROWS,
    )
    with tables:
        for table in tables:
            barcodes = np.array([name.encode() for name in table["barcode"]], dtype=np.bytes_)
            yield (
                barcodes,
                {
                    name: pandas.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
                    for name in COLUMNS[1:]
                },
            )


def _barcodes_of(column: Any) -> NDArray[np.bytes_]:
    """Takes names out of Arrow: where all are equally long, without an object for each."""
    pyarrow = require("pyarrow")
    column = column.cast(pyarrow.large_string())
    if column.null_count:
        return np.array(
            [b"" if name is None else name.encode() for name in column.to_pylist()], dtype=np.bytes_
        )
    _, offsets_buffer, data = column.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    lengths = np.diff(offsets)
    if len(lengths) and lengths[0] > 0 and (lengths == lengths[0]).all():
        view = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
        fixed: NDArray[np.bytes_] = view.view(f"S{lengths[0]}")
        return fixed
    return np.array([name.encode() for name in column.to_pylist()], dtype=np.bytes_)


def _check_columns(path: Path, names: list[str]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise DataError(f"{path}: lacks the column '{missing[0]}'; it has {', '.join(names)}. Give {_KIND}")


def _checked(path: Path, barcodes: NDArray[np.bytes_], columns: dict[str, Any]) -> Positions:
    for name, values in columns.items():
        numbers = np.asarray(values, dtype=np.float64)
        whole = name.startswith(("in_", "array_"))
        wrong = ~np.isfinite(numbers) | (whole & (numbers != np.round(numbers)))
        if name == "in_tissue":
            wrong |= (numbers != 0) & (numbers != 1)
        elif whole:
            wrong |= numbers < 0
        if wrong.any():
            row = int(wrong.argmax())
            what = "0 or 1" if name == "in_tissue" else "a whole number from 0 on" if whole else "a number"
            raise DataError(
                f"{path}: barcode '{barcodes[row].decode(errors='replace')}' has {name} {numbers[row]:g}, which is not {what}; "
                f"give {_KIND}"
            )
        columns[name] = numbers
    if (barcodes == b"").any():
        raise DataError(f"{path}: a row has no barcode; give {_KIND}")
    return Positions(
        barcodes=barcodes,
        in_tissue=columns["in_tissue"] == 1,
        array_row=columns["array_row"].astype(np.int64),
        array_col=columns["array_col"].astype(np.int64),
        spatial=np.stack([columns["pxl_col_in_fullres"], columns["pxl_row_in_fullres"]], axis=1),
    )
