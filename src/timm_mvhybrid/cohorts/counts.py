"""h5ad | CSV of one sample → its counts, by barcode and gene.

The one reader of counts, for the expression task and for the probe of pretraining. Counts are float64 whatever the file
holds: sums over many spots are then exact up to 2^53, where float32 stops counting at 2^24, and SciPy adds the columns
of a sparse matrix up in the matrix's own type.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.anndata_file import quiet_anndata
from ..runtime.errors import DataError
from ..runtime.extras import require
from ..runtime.names import unique_positions

GENERATED_KEY = "generated"
"""Entry of ``uns`` that marks data which were generated, not measured."""

RAW = "raw"
"""Name under which AnnData's ``raw`` is asked for; its genes may be others than those of X."""

_IN_TISSUE = {"0": False, "1": True, "false": False, "true": True}
_LARGEST_EXACT_HALF = 2048
"""Half precision has 11 bits: every whole number up to 2^11, and not all above."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Counts:
    """Counts of one sample.

    Attributes:
        path: The file.
        barcodes: Names of the spots.
        genes: Names of the genes.
        values: Raw counts, (spots, genes), SciPy CSR, float64.
        spatial: Centres in px of the slide, (spots, 2) as x, y; None where the file has none.
        in_tissue: Whether a spot lies under tissue, (spots,) bool; None where the file does not say.
        generated: Whether the file says that it was generated.
    """

    path: Path
    barcodes: tuple[str, ...]
    genes: tuple[str, ...]
    values: Any
    spatial: NDArray[np.float64] | None = None
    in_tissue: NDArray[np.bool_] | None = None
    generated: bool = False

    def rows(self, indices: Sequence[int]) -> Counts:
        """Takes some of the spots."""
        kept = list(indices)
        return replace(
            self,
            barcodes=tuple(self.barcodes[index] for index in kept),
            values=self.values[kept],
            spatial=None if self.spatial is None else self.spatial[kept],
            in_tissue=None if self.in_tissue is None else self.in_tissue[kept],
        )

    def under_tissue(self) -> Counts:
        """Takes the spots that lie under tissue; all where the file does not say; raises DataError if there are none."""
        if self.in_tissue is None or self.in_tissue.all():
            return self
        if not self.in_tissue.any():
            raise DataError(f"{self.path}: obs['in_tissue'] is 0 for every spot; give a sample with tissue")
        return self.rows(np.flatnonzero(self.in_tissue).tolist())


def read_counts(path: str | Path, layer: str | None = None, *, option: str = "counts_layer") -> Counts:
    """Reads the counts of one sample.

    Args:
        path: h5ad (AnnData), or a CSV whose header holds the genes after its first cell and whose rows start with the
            barcode.
        layer: h5ad: the layer that holds the counts, or ``raw``; None takes X.
        option: The parameter by which the caller's user sets ``layer``, for messages.

    Raises:
        DataError: If the file cannot be read, holds no counts where they are looked for, has values that are not counts
            (negative, not whole, not finite), or names a spot or gene twice; the message names file and remedy.
        MissingPackageError: If a package is not installed.
    """
    path = Path(path)
    require("scipy.sparse")
    if path.suffix.lower() != ".h5ad":
        if layer is not None:
            raise DataError(
                f"{path}: a CSV has no layer '{layer}'; leave `{option}` out, or give an h5ad file"
            )
        return _checked(_read_csv(path), "the table", lambda: "write raw counts into it")
    return counts_of(path, _open_h5ad(path), layer, option=option)


def counts_of(path: Path, data: Any, layer: str | None = None, *, option: str = "counts_layer") -> Counts:
    """Takes the counts of an AnnData in memory, see ``read_counts``; ``path`` says where it is from."""
    where, matrix, genes = _select(path, data, layer, option)
    counts = Counts(
        path=path,
        barcodes=tuple(map(str, data.obs_names)),
        genes=tuple(map(str, genes)),
        values=_as_csr(path, where, matrix),
        spatial=_spatial(path, data),
        in_tissue=_in_tissue(path, data),
        generated=bool(data.uns.get(GENERATED_KEY, False)),
    )
    return _checked(counts, where, lambda: _where_counts_are(data, option))


def _open_h5ad(path: Path) -> Any:
    anndata = require("anndata")
    try:
        with quiet_anndata():
            return anndata.read_h5ad(path)
    except Exception as error:  # its readers raise whatever HDF5, pandas, SciPy or its own registry raise
        raise DataError(
            f"{path}: cannot be read as an h5ad file ({' '.join(str(error).split())[:200]}); copy or write it "
            "again"
        ) from error


def _select(path: Path, data: Any, layer: str | None, option: str) -> tuple[str, Any, Any]:
    """Finds the counts: where they are, in words; the matrix; and the names of its genes."""
    if layer is None:
        if data.X is None:
            raise DataError(f"{path}: has no X, where counts belong; {_where_counts_are(data, option)}")
        return "X", data.X, data.var_names
    if layer in data.layers:
        if layer == RAW and _raw(data) is not None:
            raise DataError(f"{path}: has both raw and a layer of that name; rename the layer")
        return f"layer '{layer}'", data.layers[layer], data.var_names
    if layer == RAW and _raw(data) is not None:
        return RAW, data.raw.X, data.raw.var_names
    missing = "no raw" if layer == RAW else f"no layer '{layer}'"
    raise DataError(f"{path}: has {missing}; {_where_counts_are(data, option)}")


def _raw(data: Any) -> Any:
    return None if data.raw is None else data.raw.X


def _where_counts_are(data: Any, option: str) -> str:
    """Says which part of the file holds counts and how to take it, which repairs all that is wrong with another part."""
    # from anndata 0.13 on X is a layer, too, whose name is None
    parts = {name: data.layers[name] for name in data.layers if name is not None}
    if _raw(data) is not None:
        parts.setdefault(RAW, _raw(data))
    found = [name for name, matrix in parts.items() if _holds_counts(matrix)]
    if found:
        named = ", ".join(RAW if name == RAW else f"layer '{name}'" for name in found)
        return f"counts are in {named}: take them by `{option}={found[0]!r}`"
    if data.X is not None and _holds_counts(data.X):
        return f"counts are in X: leave `{option}` out"
    have = ", ".join(parts) or "it has neither a layer nor raw"
    return f"the file has no counts elsewhere ({have}); write raw counts into X"


def _holds_counts(matrix: Any) -> bool:
    try:
        values = _as_csr(Path(), "", matrix)
    except DataError:
        return False
    return bool(values.nnz) and not not_counts(values).any()


def _as_csr(path: Path, where: str, matrix: Any) -> Any:
    """Converts a matrix of any numeric type, dense or sparse, to CSR in float64."""
    sparse = require("scipy.sparse")
    dtype = matrix.dtype
    if dtype.kind not in "biuf" or matrix.ndim != 2:
        raise DataError(
            f"{path}: {where} holds {dtype}, {matrix.ndim}-dimensional; counts are a table of numbers"
        )
    if dtype == np.float16:
        # SciPy knows no half precision
        matrix = np.asarray(matrix, dtype=np.float32)
        if np.isinf(matrix).any() or (np.abs(matrix) > _LARGEST_EXACT_HALF).any():
            raise DataError(
                f"{path}: {where} is in half precision (float16), which rounds counts above {_LARGEST_EXACT_HALF}, "
                f"and has {np.nanmax(matrix):g}; write the counts again as float32 or integers"
            )
    values = sparse.csr_matrix(matrix).astype(np.float64)
    values.sum_duplicates()
    return values


def not_counts(values: Any) -> NDArray[np.bool_]:
    """Marks the stored values of a SciPy matrix that are not counts: not finite, negative or not whole, (stored,) bool."""
    data = values.data
    wrong: NDArray[np.bool_] = ~(np.isfinite(data) & (data >= 0) & (data == np.round(data)))
    return wrong


def _spatial(path: Path, data: Any) -> NDArray[np.float64] | None:
    if "spatial" not in data.obsm:
        return None
    centres = np.asarray(data.obsm["spatial"])
    if centres.ndim != 2 or centres.shape[1] < 2 or centres.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: obsm['spatial'] must hold x and y of each spot, not {centres.shape} {centres.dtype}"
        )
    return centres[:, :2].astype(np.float64)


def _in_tissue(path: Path, data: Any) -> NDArray[np.bool_] | None:
    """Reads the column that Space Ranger has; files keep it as numbers, switches or words."""
    if "in_tissue" not in data.obs:
        return None
    words = [str(value).strip().lower().removesuffix(".0") for value in data.obs["in_tissue"]]
    unknown = sorted({*words} - {*_IN_TISSUE})
    if unknown:
        raise DataError(f"{path}: obs['in_tissue'] holds '{unknown[0]}'; it must be 0 or 1 for each spot")
    return np.array([_IN_TISSUE[word] for word in words], dtype=bool)


def _read_csv(path: Path) -> Counts:
    barcodes: list[str] = []
    rows: list[NDArray[np.float64]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            genes = next(reader, [""])[1:]
            for cells in reader:
                if len(cells) != len(genes) + 1:
                    raise ValueError(f"line {reader.line_num} has another number of cells than the header")
                barcodes.append(cells[0])
                rows.append(np.array(cells[1:], dtype=np.float64))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table of counts ({error})") from error
    table = np.stack(rows) if rows else np.empty((0, len(genes)))
    return Counts(
        path=path,
        barcodes=tuple(barcodes),
        genes=tuple(genes),
        values=_as_csr(path, "the table", table),
    )


def _checked(counts: Counts, where: str, remedy: Callable[[], str]) -> Counts:
    if 0 in counts.values.shape:
        spots, genes = counts.values.shape
        raise DataError(
            f"{counts.path}: {where} holds no counts ({spots} spots × {genes} genes); give a sample with both"
        )
    unique_positions(
        counts.path, "barcode", counts.barcodes, "name each spot once, or remove the row that was added twice"
    )
    unique_positions(
        counts.path,
        "gene",
        counts.genes,
        "make the names unique (AnnData.var_names_make_unique) or add its columns together, and write the file again",
    )
    wrong = not_counts(counts.values)
    if wrong.any():
        first = int(wrong.argmax())
        row = int(np.searchsorted(counts.values.indptr, first, side="right")) - 1
        raise DataError(
            f"{counts.path}: barcode '{counts.barcodes[row]}', gene '{counts.genes[counts.values.indices[first]]}' has "
            f"the value {counts.values.data[first]} in {where}, which is not a count; {remedy()}"
        )
    return counts
