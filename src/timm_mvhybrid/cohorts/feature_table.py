"""Features of a 10x matrix → genes: what is no gene is left out, and features of one symbol are one gene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError

GENE_EXPRESSION = "Gene Expression"
"""Type of the features that are genes; others, such as Antibody Capture, are not."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureTable:
    """Genes of a matrix's features.

    Symbols repeat, because two identifiers may share one. Counts of equal symbols are added up: genes are matched among
    samples by symbol, and a suffix that tells them apart would depend on the order in one reference.

    Attributes:
        genes: Symbols, in the order of their first feature.
        gene_ids: Identifiers of each, joined by ``|`` where there are several.
        gene_of: Number of the gene of each feature; −1 for what is no gene.
        dropped: Type → number of features that are no genes.
        merged: Symbols of several features, and how many.
    """

    genes: tuple[str, ...]
    gene_ids: tuple[str, ...]
    gene_of: NDArray[np.int64]
    dropped: dict[str, int]
    merged: dict[str, int]

    @staticmethod
    def of(path: Path, ids: Sequence[str], symbols: Sequence[str], types: Sequence[str]) -> FeatureTable:
        """Sorts features into genes.

        Args:
            path: The file, for messages.
            ids: Identifier of each feature.
            symbols: Symbol of each; the identifier stands in for an empty one.
            types: Type of each; empty if the file says none, and then all are genes.

        Raises:
            DataError: If no feature is a gene.
        """
        kinds = types or [GENE_EXPRESSION] * len(ids)
        dropped = Counter(kind for kind in kinds if kind != GENE_EXPRESSION)
        ids_of: dict[str, list[str]] = {}
        gene_of = np.full(len(ids), -1, dtype=np.int64)
        place: dict[str, int] = {}
        for feature, (identifier, symbol, kind) in enumerate(zip(ids, symbols, kinds, strict=True)):
            if kind == GENE_EXPRESSION:
                name = symbol or identifier
                gene_of[feature] = place.setdefault(name, len(place))
                ids_of.setdefault(name, []).append(identifier)
        if not place:
            kinds_named = ", ".join(f"{number} of {kind}" for kind, number in sorted(dropped.items()))
            raise DataError(
                f"{path}: has no feature of the type {GENE_EXPRESSION} ({kinds_named or 'none at all'}); give a matrix of genes"
            )
        return FeatureTable(
            genes=tuple(place),
            gene_ids=tuple("|".join(dict.fromkeys(found)) for found in ids_of.values()),
            gene_of=gene_of,
            dropped=dict(dropped),
            merged={name: len(found) for name, found in ids_of.items() if len(found) > 1},
        )

    def to_genes(self, values: Any) -> Any:
        """Adds columns of features up to columns of genes.

        Args:
            values: (spots, features), SciPy CSR.

        Returns:
            (spots, genes), SciPy CSR, of the same type.
        """
        if len(self.genes) == len(self.gene_of):
            # one feature a gene, in the same order
            return values
        kept = self.gene_of >= 0
        membership = values.__class__(
            (np.ones(kept.sum(), values.dtype), (np.flatnonzero(kept), self.gene_of[kept])),
            shape=(len(self.gene_of), len(self.genes)),
        )
        return values @ membership

    @property
    def notes(self) -> dict[str, Any]:
        """What was decided, for the record."""
        return {"dropped_features": self.dropped, "merged_genes": self.merged}
