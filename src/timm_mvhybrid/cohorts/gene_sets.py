"""GMT files and dictionaries → gene sets → which column of a table belongs to which set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError
from ..runtime.extras import require
from ..runtime.names import unique_positions
from .csv_tables import read_text

GeneSets = Mapping[str, Sequence[str]] | str | Path
"""Name of a set → its genes, or the path of a GMT file."""


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Reads gene sets from a GMT file: a name, a description and genes a line, tabs between them.

    Blanks around names and genes are removed, empty cells and lines skipped, and a gene that a set lists several times
    is kept once. Compression is recognised by the file's content.

    Args:
        path: The file, plain or compressed by gzip.

    Returns:
        Name → distinct genes, both in the file's order.

    Raises:
        DataError: If the file cannot be read, holds no set, names a set twice, or a line has no genes, no name or no
            tabs; the message names file and line.
    """
    path = Path(path)
    found: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(path, "GMT file").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) < 2 or not cells[0]:
            raise DataError(
                f"{where} must hold a name, a description and genes with tabs between them, not "
                f"{line.strip()[:60]!r}; repair the line, or remove it"
            )
        name, genes = cells[0], [gene for gene in cells[2:] if gene]
        if not genes:
            raise DataError(f"{where}: the set '{name}' has no genes; add them, or remove the line")
        if name in found:
            raise DataError(
                f"{where}: the set '{name}' is also in line {lines[name]}; give each set a name of its own"
            )
        found[name], lines[name] = list(dict.fromkeys(genes)), number
    if not found:
        raise DataError(f"{path}: holds no gene set; give a GMT file (name, description, genes in a line)")
    return found


@dataclass(frozen=True, eq=False, kw_only=True)
class MatchedSets:
    """Gene sets among the genes that were measured.

    Attributes:
        names: Sets that are scored, in the order they were given.
        num_genes: Distinct genes of each, (sets,).
        num_measured: How many of them were measured, (sets,).
        dropped: Name → why the set is not scored.
        num_by_case_alone: Genes of the sets that would match a measured one in upper case, and do not as they are.
        membership: 1 where a gene belongs to a set, (genes, sets), SciPy CSR, float64.
    """

    names: tuple[str, ...]
    num_genes: NDArray[np.int64]
    num_measured: NDArray[np.int64]
    dropped: dict[str, str]
    num_by_case_alone: int
    membership: Any


def match_sets(
    genes: Sequence[str],
    gene_sets: GeneSets,
    *,
    min_genes: int = 5,
    max_genes: int | None = None,
    ignore_case: bool = False,
) -> MatchedSets:
    """Finds the measured genes of each set.

    Args:
        genes: Names of the measured genes.
        gene_sets: The sets.
        min_genes: Distinct measured genes that a set needs.
        max_genes: Distinct measured genes that a set may have; None allows all.
        ignore_case: Whether ``Actb`` and ``ACTB`` are one gene.

    Returns:
        The sets that have as many.

    Raises:
        DataError: If there is no set, one has no genes, a measured gene occurs twice, or no set has enough measured
            genes; the message then says how many more would match in upper case.
    """
    if min_genes < 1:
        raise DataError(f"`min_genes` is {min_genes}; give 1 or more")
    origin = str(gene_sets) if isinstance(gene_sets, str | Path) else "`gene_sets`"
    sets = _distinct(read_gmt(gene_sets) if isinstance(gene_sets, str | Path) else gene_sets)
    measured = [str(gene) for gene in genes]
    position = unique_positions(
        "`genes`", "gene", measured, "make the names unique, or add its columns together"
    )
    if ignore_case:
        position = unique_positions(
            "`genes` in upper case",
            "gene",
            [gene.upper() for gene in measured],
            "rename one of the genes that differ by case alone, or give `ignore_case=False`",
        )
        sets = {name: list(dict.fromkeys(map(str.upper, members))) for name, members in sets.items()}
    columns = {
        name: [position[gene] for gene in members if gene in position] for name, members in sets.items()
    }
    dropped = {}
    for name, found in columns.items():
        if len(found) < min_genes:
            dropped[name] = f"{len(found)} of {len(sets[name])} genes measured, `min_genes` is {min_genes}"
        elif max_genes is not None and len(found) > max_genes:
            dropped[name] = (
                f"{len(found)} of {len(measured)} measured genes, at most {max_genes} can be scored"
            )
    names = tuple(name for name in sets if name not in dropped)
    wanted = {gene for members in sets.values() for gene in members}
    shared = len(wanted & position.keys())
    upper = len({gene.upper() for gene in wanted} & {gene.upper() for gene in measured})
    if not names:
        raise DataError(_nothing_left(origin, sets, measured, min_genes, dropped, shared, upper))
    rows = np.concatenate([columns[name] for name in names])
    sizes = np.array([len(columns[name]) for name in names])
    membership = require("scipy.sparse").csr_matrix(
        (np.ones(len(rows)), (rows, np.repeat(np.arange(len(names)), sizes))),
        shape=(len(measured), len(names)),
    )
    return MatchedSets(
        names=names,
        num_genes=np.array([len(sets[name]) for name in names]),
        num_measured=sizes,
        dropped=dropped,
        num_by_case_alone=upper - shared,
        membership=membership,
    )


def _distinct(gene_sets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    if not gene_sets:
        raise DataError("`gene_sets` is empty; give at least one set of genes")
    sets = {}
    for name, members in gene_sets.items():
        if isinstance(members, str):
            raise DataError(f"`gene_sets`: the set '{name}' is the text {members!r}; give a list of genes")
        sets[str(name)] = list(dict.fromkeys(str(gene).strip() for gene in members))
        if not sets[str(name)]:
            raise DataError(f"`gene_sets`: the set '{name}' has no genes; add them, or remove the set")
    return sets


def _nothing_left(
    origin: str,
    sets: Mapping[str, Sequence[str]],
    measured: Sequence[str],
    min_genes: int,
    dropped: Mapping[str, str],
    shared: int,
    upper: int,
) -> str:
    wanted = {gene for members in sets.values() for gene in members}
    if upper > shared:
        remedy = (
            f"{upper} would match in upper case: give `ignore_case=True` if both name the same species' genes"
        )
    elif shared:
        remedy = f"lower `min_genes`, which is {min_genes}, or give other sets"
    else:
        remedy = "give both by the same kind of name, such as gene symbols"
    reason = f"no set of {origin} can be scored ({next(iter(dropped.values()))})" if shared else (
        f"no gene of {origin} is among `genes`"
    )  # fmt: skip
    return (
        f"{reason}: {shared} of the {len(wanted)} genes of {len(sets)} sets ('{min(wanted)}' …) are among the "
        f"{len(measured)} measured ones ('{measured[0] if measured else ''}' …); {remedy}"
    )
