"""Ways to add bins up to squares, each run in a process of its own: ``python -m benchmarks.bin_contenders NAME OUTS``.

The process prints seconds, the most memory beyond what it had after its imports, and a hash of the sums.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas
from scipy import sparse

from timm_mvhybrid.cohorts import PatchOptions, VisiumHDFolder

from .generated_bins import BIN_UM

SIDE = round(PatchOptions().side_um / BIN_UM)
"""Side of a square in bins: as many as a patch of 112 µm has."""


def ours(outs: Path) -> Any:
    """Reads the sample as ``prepare visium-hd`` does."""
    return VisiumHDFolder(folder=outs, bin_size_um=BIN_UM, min_tissue=0.0).read("S", PatchOptions()).counts


def dense_bands(outs: Path) -> Any:
    """Makes a dense array of the bins of each row of squares, and adds it up along two of its axes."""
    return _dense(outs, SIDE)


def dense_rows(outs: Path) -> Any:
    """Makes a dense array of one row of bins after the other."""
    return _dense(outs, 1)


def pandas_group_by(outs: Path) -> Any:
    """Makes a table of square, gene and count of all values, and groups it."""
    rows, cols, num_genes = _places(outs)
    grid = -(-(int(cols.max()) + 1) // SIDE)
    squares = (rows // SIDE * grid + cols // SIDE).astype(np.int32)
    with _opened(outs) as file:
        ends = file["matrix/indptr"][()]
        table = pandas.DataFrame(
            {
                "square": np.repeat(squares, np.diff(ends)),
                "gene": file["matrix/indices"][()].astype(np.int32),
                "count": file["matrix/data"][()],
            }
        )
    sums = table.groupby(["square", "gene"], sort=False)["count"].sum()
    square, gene = (sums.index.get_level_values(level) for level in range(2))
    return sparse.csr_matrix((sums.to_numpy(), (square, gene)), shape=(grid * grid, num_genes))


CONTENDERS: dict[str, Callable[[Path], Any]] = {
    "ours": ours,
    "dense arrays, a row of squares at a time": dense_bands,
    "dense arrays, a row of bins at a time": dense_rows,
    "pandas group-by": pandas_group_by,
}


def _dense(outs: Path, num_rows: int) -> Any:
    rows, cols, num_genes = _places(outs)
    side = int(cols.max()) + 1
    if not np.array_equal(rows * side + cols, np.arange(len(rows))):
        raise ValueError("dense arrays take the bins row by row")
    grid = -(-side // SIDE)
    sums = np.zeros((grid, grid, num_genes), dtype=np.int64)
    for first, values in _bands(outs, side, num_rows, num_genes):
        dense = values.toarray().reshape(-1, side, num_genes)
        # along each axis, squares begin at every SIDE-th bin
        of_rows = dense.sum(axis=0)
        sums[first // SIDE] += np.add.reduceat(of_rows, np.arange(0, side, SIDE), axis=0)
    return sparse.csr_matrix(sums.reshape(grid * grid, num_genes))


def _bands(outs: Path, side: int, num_rows: int, num_genes: int) -> Iterator[tuple[int, Any]]:
    with _opened(outs) as file:
        group = file["matrix"]
        for first in range(0, side, num_rows):
            last = min(first + num_rows, side)
            ends = group["indptr"][first * side : last * side + 1]
            begin, end = int(ends[0]), int(ends[-1])
            values = (group["data"][begin:end], group["indices"][begin:end], ends - begin)
            yield first, sparse.csr_matrix(values, shape=(len(ends) - 1, num_genes))


def _places(outs: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Looks the barcodes of the matrix up in the table of positions, for the row and column of each bin in tissue."""
    columns = ["barcode", "in_tissue", "array_row", "array_col"]
    table = pandas.read_parquet(_folder(outs) / "spatial" / "tissue_positions.parquet", columns=columns)
    with _opened(outs) as file:
        num_genes = int(file["matrix/shape"][0])
        barcodes = file["matrix/barcodes"].asstr()[()]
    found = table.set_index("barcode").loc[barcodes]
    if not (found["in_tissue"] == 1).all():
        raise ValueError("the contenders take all bins to be in tissue")
    return found["array_row"].to_numpy(), found["array_col"].to_numpy(), num_genes


def _folder(outs: Path) -> Path:
    return outs / "binned_outputs" / f"square_{BIN_UM:03d}um"


def _opened(outs: Path) -> h5py.File:
    return h5py.File(_folder(outs) / "filtered_feature_bc_matrix.h5")


def _resident_bytes(key: str) -> int:
    """Reads the memory of this process that is in use (VmRSS), or was at most (VmHWM)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def digest(sums: Any) -> str:
    """Hashes sums, whatever their type and order in memory."""
    matrix = sparse.csr_matrix(sums).astype(np.int64)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    found = hashlib.sha256(str(matrix.shape).encode())
    for values in (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data):
        found.update(values.tobytes())
    return found.hexdigest()


def main(name: str, outs: str) -> None:
    """Runs one contender, and prints what it took."""
    import anndata  # noqa: F401 - imported by others, so that their memory is in none's account
    import pyarrow.parquet  # noqa: F401

    call = CONTENDERS[name]
    # the mark of the most memory begins again here (man proc_pid_clear_refs)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_bytes("VmRSS")
    start, cpu_start = time.perf_counter(), time.process_time()
    sums = call(Path(outs))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = _resident_bytes("VmHWM") - before
    result = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak, "digest": digest(sums)}
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
