"""A generated Visium HD sample of many bins, written a few rows of bins at a time."""

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet

BIN_UM = 2
UM_PER_PX = 0.25
_ROWS_AT_A_TIME = 32


def write_bins(outs: Path, *, side_mm: float, num_genes: int, filled: float, seed: int = 0) -> int:
    """Writes matrix, positions and scale factors of a square of bins as Space Ranger does, all bins in tissue.

    Args:
        outs: Folder to make.
        side_mm: Side of the square.
        num_genes: Genes.
        filled: Fraction of the values of bins × genes that are above 0; in each bin as many.
        seed: Of the counts.

    Returns:
        Number of values above 0.
    """
    folder = outs / "binned_outputs" / f"square_{BIN_UM:03d}um"
    (folder / "spatial").mkdir(parents=True)
    side = round(side_mm * 1000 / BIN_UM)
    each = max(round(filled * num_genes), 1)
    rng = np.random.default_rng(seed)
    factors = {"bin_size_um": float(BIN_UM), "microns_per_pixel": UM_PER_PX}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        names = np.array([f"G{gene}" for gene in range(num_genes)], dtype="S")
        for name in ("id", "name"):
            group[f"features/{name}"] = names
        group["features/feature_type"] = np.array([b"Gene Expression"] * num_genes)
        group["shape"] = np.array([num_genes, side * side], dtype=np.int64)
        kinds = {"data": "i4", "indices": "i8", "indptr": "i8", "barcodes": "S21"}
        lengths = {
            "data": side * side * each,
            "indices": side * side * each,
            "indptr": side * side + 1,
            "barcodes": side * side,
        }
        datasets = {
            name: group.create_dataset(
                name, (lengths[name],), kind, chunks=(min(1 << 16, lengths[name]),), compression="gzip"
            )
            for name, kind in kinds.items()
        }
        schema = pyarrow.schema([
            ("barcode", pyarrow.string()),
            *((name, pyarrow.int32()) for name in ("in_tissue", "array_row", "array_col")),
            *((name, pyarrow.float64()) for name in ("pxl_row_in_fullres", "pxl_col_in_fullres")),
        ])  # fmt: skip
        with pyarrow.parquet.ParquetWriter(folder / "spatial" / "tissue_positions.parquet", schema) as table:
            for first in range(0, side, _ROWS_AT_A_TIME):
                rows, cols = (
                    place.ravel() for place in np.mgrid[first : min(first + _ROWS_AT_A_TIME, side), 0:side]
                )
                begin, end = first * side, first * side + len(rows)
                barcodes = _names(rows, cols)
                datasets["barcodes"][begin:end] = barcodes
                datasets["indptr"][begin:end] = np.arange(begin, end) * each
                # one gene of each stretch of the panel, so that none repeats within a bin
                starts = np.arange(each) * num_genes // each
                widths = np.diff([*starts, num_genes])
                genes = starts + (rng.random((len(rows), each), dtype=np.float32) * widths).astype(np.int64)
                datasets["indices"][begin * each : end * each] = genes.ravel()
                datasets["data"][begin * each : end * each] = rng.geometric(0.7, len(rows) * each)
                table.write_batch(
                    pyarrow.record_batch(
                        [
                            pyarrow.array(barcodes.astype(str)),
                            np.ones(len(rows), dtype=np.int32),
                            rows.astype(np.int32),
                            cols.astype(np.int32),
                            100 + rows * BIN_UM / UM_PER_PX,
                            100 + cols * BIN_UM / UM_PER_PX,
                        ],
                        schema=schema,
                    )
                )
        datasets["indptr"][-1] = side * side * each
    return side * side * each


def _names(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Spells barcodes such as ``s_002um_00012_00345-1``."""
    letters = np.tile(np.frombuffer(b"s_002um_00000_00000-1", dtype=np.uint8), (len(rows), 1))
    for last, numbers in ((12, rows), (18, cols)):
        for place in range(5):
            letters[:, last - place] = ord("0") + numbers // 10**place % 10
    return letters.view("S21").ravel()
