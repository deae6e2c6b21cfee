"""h5ad files + a column of ``var`` → which group each gene belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..runtime.anndata_file import quiet_anndata
from ..runtime.errors import DataError
from ..runtime.extras import require

AUTOMATIC_COLUMN = "band"
"""The column that phantoms have, and that is taken unless another is named."""
MOST_GROUPS = 24
"""More are no groups that a table could show, such as the cytogenetic bands of a genome."""


def read_gene_groups(files: Sequence[Path], column: str | None) -> dict[str, str]:
    """Reads which group each gene belongs to.

    Args:
        files: The h5ad files of all samples.
        column: The column of ``var``; None takes ``band`` where every file has it with at most 24 groups, and otherwise none.

    Returns:
        Gene → group, both in the order of the first file that has them; without genes whose group is missing. Empty
        without groups.

    Raises:
        DataError: If a file cannot be read or lacks the column that was named, a gene belongs to different groups in two
            files, or there are more than 24 groups.
    """
    name = AUTOMATIC_COLUMN if column is None else column
    groups: dict[str, str] = {}
    first_file: dict[str, Path] = {}
    for file in files:
        found = _read_column(file, name, required=column is not None)
        if found is None:
            return {}
        for gene, group in found.items():
            known = groups.setdefault(gene, group)
            if known != group:
                raise DataError(
                    f"{file}: gene '{gene}' has '{group}' in var['{name}'], and '{known}' in "
                    f"{first_file[gene].name}; write one group for each gene, or leave `gene_groups` out by 'none'"
                )
            first_file.setdefault(gene, file)
    num_groups = len(set(groups.values()))
    if column is not None and not groups:
        raise DataError(f"{files[0]}: var['{name}'] holds no group of any gene; name another column")
    if num_groups > MOST_GROUPS:
        if column is None:
            return {}
        raise DataError(
            f"{files[0]}: var['{name}'] has {num_groups} groups, more than the {MOST_GROUPS} that can be shown; name a "
            "column with fewer"
        )
    return groups


def _read_column(file: Path, name: str, *, required: bool) -> dict[str, str] | None:
    anndata, pandas = require("anndata"), require("pandas")
    try:
        with quiet_anndata():
            # the counts stay in the file
            data = anndata.read_h5ad(file, backed="r")
    except Exception as error:  # its readers raise whatever HDF5, pandas or its own registry raise
        raise DataError(
            f"{file}: cannot be read as an h5ad file ({' '.join(str(error).split())[:200]}); copy or write it again"
        ) from error
    try:
        table = data.var
    finally:
        data.file.close()
    if name not in table:
        if not required:
            return None
        have = ", ".join(map(str, table.columns)) or "none"
        raise DataError(f"{file}: var has no column '{name}'; it has {have}")
    values = table[name]
    return {
        str(gene): str(group).strip()
        for gene, group, missing in zip(table.index, values, pandas.isna(values), strict=True)
        if not missing and str(group).strip()
    }
