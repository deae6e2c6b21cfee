"""h5ad | CSV of counts → expression of named genes at named spots."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import PretrainError

_EXTRA = "pip install 'timm-mvhybrid[evaluate]'"


@dataclass(frozen=True, kw_only=True)
class ExpressionTable:
    """Counts of one sample.

    Args:
        path: The file.
        barcodes: Names of the spots.
        genes: Names of the genes.
        counts: (spots, genes) sparse matrix.
    """

    path: Path
    barcodes: tuple[str, ...]
    genes: tuple[str, ...]
    counts: Any

    def rows(self, indices: Sequence[int]) -> ExpressionTable:
        """Takes some of the spots.

        Args:
            indices: Their rows.

        Returns:
            The table of these spots, in the given order.
        """
        return ExpressionTable(
            path=self.path,
            barcodes=tuple(self.barcodes[index] for index in indices),
            genes=self.genes,
            counts=self.counts[list(indices)],
        )


def read_expression(path: Path) -> ExpressionTable:
    """Reads the counts of one sample.

    Args:
        path: h5ad (AnnData), or a CSV whose header holds the genes behind its first cell and whose rows start with
            the barcode.

    Returns:
        The table.

    Raises:
        PretrainError: A package is missing, or the file is unreadable, has negative or non-finite counts, or names a
            spot or gene twice.
    """
    try:
        from scipy.sparse import csr_matrix
    except ImportError as error:
        raise PretrainError(f"{path}: expression needs SciPy ({error}): {_EXTRA}") from error
    barcodes, genes, values = _read_h5ad(path) if path.suffix.lower() == ".h5ad" else _read_csv(path)
    counts = csr_matrix(values, dtype=np.float32)
    if not np.isfinite(counts.data).all() or (counts.data < 0).any():
        raise PretrainError(f"{path}: holds negative or non-finite counts; give raw counts")
    for kind, names in (("barcode", barcodes), ("gene", genes)):
        if len(set(names)) != len(names):
            twice = next(name for index, name in enumerate(names) if name in names[:index])
            raise PretrainError(f"{path}: {kind} '{twice}' occurs more than once; make names unique")
    return ExpressionTable(path=path, barcodes=tuple(barcodes), genes=tuple(genes), counts=counts)


def most_variable_genes(
    tables: Sequence[ExpressionTable], num_genes: int
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Chooses the genes whose expression varies most over all spots.

    Args:
        tables: Counts of each sample.
        num_genes: Genes to choose; fewer where fewer vary.

    Returns:
        Their names, by falling variance, and log(1 + counts scaled to the sample's median total), (spots, genes).

    Raises:
        PretrainError: The samples share no gene that varies.
    """
    shared = sorted(set(tables[0].genes).intersection(*(table.genes for table in tables[1:])))
    if not shared:
        raise PretrainError(
            f"{tables[0].path} and {tables[-1].path} share no gene; name genes in the same way in every sample"
        )
    logs = []
    for table in tables:
        position = {gene: index for index, gene in enumerate(table.genes)}
        totals = np.asarray(table.counts.sum(axis=1)).ravel()
        positive = totals[totals > 0]
        # a spot without counts stays 0, whatever it is multiplied by
        scale = (np.median(positive) if len(positive) else 0.0) / np.where(totals > 0, totals, 1)
        columns = table.counts[:, [position[gene] for gene in shared]]
        logs.append(columns.multiply(scale[:, None]).tocsr().log1p())
    num_spots = sum(log.shape[0] for log in logs)
    # sparse all the way: a sample of all genes would be hundreds of megabytes otherwise
    mean = sum(np.asarray(log.sum(axis=0), dtype=np.float64).ravel() for log in logs) / num_spots
    square = (
        sum(np.asarray(log.multiply(log).sum(axis=0), dtype=np.float64).ravel() for log in logs) / num_spots
    )
    variance = np.asarray(square - mean**2)
    order = np.argsort(-variance, kind="stable")[:num_genes]
    chosen = order[variance[order] > 1e-9]
    if not len(chosen):
        raise PretrainError(f"{tables[0].path}: no gene varies between the spots")
    expression = np.concatenate([log[:, chosen].toarray() for log in logs]).astype(np.float32)
    return tuple(shared[index] for index in chosen), expression


def _read_h5ad(path: Path) -> tuple[list[str], list[str], Any]:
    try:
        import anndata
    except ImportError as error:
        raise PretrainError(f"{path}: h5ad files need anndata ({error}): {_EXTRA}") from error
    try:
        data = anndata.read_h5ad(path)
    # anndata wraps what h5py raises in errors of its own, of several kinds
    except Exception as error:
        raise PretrainError(f"{path}: cannot be read as h5ad ({' '.join(str(error).split())})") from error
    return [str(name) for name in data.obs_names], [str(name) for name in data.var_names], data.X


def _read_csv(path: Path) -> tuple[list[str], list[str], Any]:
    barcodes: list[str] = []
    rows: list[NDArray[np.float32]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            genes = next(reader, [""])[1:]
            for cells in reader:
                if len(cells) != len(genes) + 1:
                    raise ValueError(f"line {reader.line_num} has another number of cells than the header")
                barcodes.append(cells[0])
                rows.append(np.array(cells[1:], dtype=np.float32))
    except (OSError, ValueError, csv.Error) as error:
        raise PretrainError(f"{path}: cannot be read as a table of counts ({error})") from error
    if not rows or not genes:
        raise PretrainError(f"{path}: holds no counts; its rows must be a barcode and a count for each gene")
    return barcodes, genes, np.stack(rows)
