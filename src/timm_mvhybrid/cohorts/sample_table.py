"""CSV of samples → patches and counts of each, and whose they are."""

from __future__ import annotations

from pathlib import Path

from ..data import DataError
from ..runtime.names import unique_positions
from .csv_tables import PATIENT_COLUMNS, patients, read_csv
from .hest_layout import HestSample, read_spots


def read_samples(
    file: str | Path, counts_layer: str | None = None, *, option: str = "counts_layer"
) -> tuple[list[HestSample], dict[str, str]]:
    """Reads samples that a table lists.

    Args:
        file: CSV with the columns patches (patch h5 with barcodes), expression (h5ad, or CSV with a barcode and a count
            for each gene in a row) and, if known, patient (or group: what must not be split). Relative paths start at
            the table's folder.
        counts_layer: As in ``read_spots``.
        option: As in ``read_spots``.

    Returns:
        The samples, called by their path in the table, without patches that have no counts; and sample → patient, the
        sample itself where patients are unknown.

    Raises:
        DataError: If the table lacks a column or names a sample twice, or a sample cannot be read, see ``read_spots``.
    """
    file = Path(file)
    rows = read_csv(file, ("patches", "expression"))
    if not rows:
        raise DataError(f"{file}: names no sample")
    names = [row["patches"] for row in rows]
    unique_positions(file, "sample", names, "give each sample one line")
    owners = patients(file, rows, "sample", "patches", PATIENT_COLUMNS)
    samples = [
        read_spots(
            row["patches"],
            file.parent / row["patches"],
            file.parent / row["expression"],
            counts_layer,
            option=option,
            leave_out_unmeasured=True,
        )
        for row in rows
    ]
    return samples, {name: owner or name for name, owner in zip(names, owners, strict=True)}
