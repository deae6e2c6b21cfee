"""Tables of transcripts (parquet) → places and genes of those that count, some at a time, and how many do not and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError
from ..runtime.extras import require
from ..runtime.names import unique_positions
from .token_grid import MIN_QV

CONTROLS = ("blank", "negcontrol", "unassigned", "deprecated", "antisense", "intergenic")
"""How names of features that are no genes begin, whatever their case."""

HE_COLUMNS = ("he_x", "he_y")
"""Columns of places in level-0 px of the H&E image, as HEST writes them."""

UM_COLUMNS = ("x_location", "y_location")
"""Columns of places in µm of the morphology image, as Xenium writes them."""

_NOT_GENE = "no_gene"
_BATCH_ROWS = 1 << 20


@dataclass(kw_only=True)
class LeftOut:
    """How many transcripts do not count, and why.

    Attributes:
        num_controls: Of features that are no genes, by the beginning of their name; ``no_gene`` where the name does not
            say so and the table does.
        num_low_quality: Of genes below the quality asked for.
        num_other_genes: Of genes that were not asked for.
        num_without_place: Without a place.
    """

    num_controls: dict[str, int] = field(default_factory=dict)
    num_low_quality: int = 0
    num_other_genes: int = 0
    num_without_place: int = 0

    def describe(self, min_qv: float) -> str:
        """Says it in words, as the end of a sentence."""
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in sorted(self.num_controls.items()))
        return (
            f"left out are {sum(self.num_controls.values()):,} of controls{f' ({kinds})' if kinds else ''}, "
            f"{self.num_low_quality:,} below quality {min_qv:g} and {self.num_without_place:,} without a place"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class TranscriptBatch:
    """Some transcripts that count.

    Attributes:
        x: Columns, in the unit of the table, (transcripts,) float64.
        y: Rows, (transcripts,) float64.
        gene: Number of the gene of each, (transcripts,) int32.
        qv: Phred-scaled quality of each, (transcripts,) float32.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    gene: NDArray[np.int32]
    qv: NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class Transcripts:
    """Transcripts of a slide that count.

    Attributes:
        path: The file.
        genes: Names of the genes.
        x_px: Columns in level-0 px of the H&E image, (transcripts,) float64.
        y_px: Rows in level-0 px of the H&E image, (transcripts,) float64.
        gene: Number of the gene of each, (transcripts,) int32.
        qv: Phred-scaled quality of each, (transcripts,) float32.
        left_out: How many others there are, and why they do not count.
    """

    path: Path
    genes: tuple[str, ...]
    x_px: NDArray[np.float64]
    y_px: NDArray[np.float64]
    gene: NDArray[np.int32]
    qv: NDArray[np.float32]
    left_out: LeftOut

    def __len__(self) -> int:
        """Returns the number of transcripts that count."""
        return len(self.x_px)


class TranscriptTable:
    """A table of transcripts, read some rows at a time; a table of any length takes the memory of a batch.

    Args:
        path: The parquet file.
        columns: Columns of x and y, ``HE_COLUMNS`` or ``UM_COLUMNS``.
        genes: Genes to keep, in the order that their numbers follow; None numbers all by their first occurrence.
        min_qv: Lowest quality that counts.

    Attributes:
        genes: Names of the genes by their number: all that were asked for, or all that were met.
        num_kept: Transcripts that the last pass over the table gave.
        left_out: What it left out.

    Raises:
        DataError: If there is no such file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        columns: tuple[str, str] = HE_COLUMNS,
        genes: Sequence[str] | None = None,
        min_qv: float = MIN_QV,
    ) -> None:
        self.path = Path(path)
        self.columns = columns
        self.min_qv = min_qv
        self.left_out = LeftOut()
        self.num_kept = 0
        self._takes_all = genes is None
        self._number = (
            {}
            if genes is None
            else unique_positions(self.path, "gene", list(genes), "ask for each gene once")
        )
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file; give a parquet table of transcripts")

    @property
    def genes(self) -> tuple[str, ...]:
        """Names of the genes by their number."""
        return tuple(self._number)

    def __iter__(self) -> Iterator[TranscriptBatch]:
        """Yields the transcripts that count, in the order of the table.

        Raises:
            DataError: If the file cannot be read, lacks a column, a place is infinite, or, at the end, no transcript
                counts.
            MissingPackageError: If pyarrow is not installed.
        """
        self.left_out, self.num_kept = LeftOut(), 0
        for x, y, qv, codes, names, is_gene in self._batches():
            kept = self._judge(x, y, qv, codes, names, is_gene)
            batch = TranscriptBatch(
                x=x[kept],
                y=y[kept],
                gene=self._genes_of(codes[kept], names),
                qv=qv[kept].astype(np.float32),
            )
            if not (np.isfinite(batch.x).all() and np.isfinite(batch.y).all()):
                raise DataError(
                    f"{self.path}: {' or '.join(self.columns)} is infinite; write the table again"
                )
            self.num_kept += len(batch.x)
            yield batch
        if not self.num_kept:
            found = self.left_out
            raise DataError(
                f"{self.path}: no transcript counts ({found.num_low_quality} below quality {self.min_qv:g}, "
                f"{sum(found.num_controls.values())} of controls, {found.num_other_genes} of other genes, "
                f"{found.num_without_place} without a place); check the table and the genes"
            )

    def _judge(
        self, x: Any, y: Any, qv: Any, codes: Any, names: list[str], is_gene: Any
    ) -> NDArray[np.bool_]:
        """Says which transcripts count, and counts the others by the first reason that holds."""
        kinds = [control_kind(name) for name in names]
        controls = Counter(self.left_out.num_controls)
        of_kind = np.array([kind is not None for kind in kinds], bool)
        control = of_kind[codes] if len(codes) else np.zeros(0, bool)
        for code, times in enumerate(np.bincount(codes, minlength=len(names)).tolist()):
            if (kind := kinds[code]) is not None and times:
                controls[kind] += times
        if is_gene is not None and (unnamed := int((~is_gene & ~control).sum())):
            controls[_NOT_GENE] += unnamed
            control |= ~is_gene
        if self._takes_all:
            for code in np.unique(codes[~control]).tolist():
                self._number.setdefault(names[code], len(self._number))
        known = ~control & (self._genes_of(codes, names) >= 0)
        good, placed = qv >= self.min_qv, ~(np.isnan(x) | np.isnan(y))
        self.left_out.num_controls = dict(controls)
        self.left_out.num_low_quality += int((~good & known).sum())
        self.left_out.num_other_genes += int((~control & ~known).sum())
        self.left_out.num_without_place += int((known & good & ~placed).sum())
        return known & good & placed

    def _genes_of(self, codes: Any, names: list[str]) -> NDArray[np.int32]:
        of_name = np.array([self._number.get(name, -1) for name in names], np.int32)
        return of_name[codes] if len(codes) else np.empty(0, np.int32)

    def _batches(self) -> Iterator[tuple[Any, Any, Any, Any, list[str], Any]]:
        """Yields places, qualities, features as codes of a list of names, and whether they are genes, if the table says."""
        parquet = require("pyarrow.parquet")
        require("pyarrow.compute")
        wanted = [*self.columns, "feature_name", "qv"]
        try:
            with parquet.ParquetFile(self.path) as file:
                have = file.schema_arrow.names
                missing = [name for name in wanted if name not in have]
                if missing:
                    raise DataError(
                        f"{self.path}: lacks the column '{missing[0]}'; it has {', '.join(have)}{self._hint()}"
                    )
                wanted += ["is_gene"] * ("is_gene" in have)
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                    yield _arrays(self.path, batch, self.columns)
        except DataError:
            raise
        except Exception as error:  # pyarrow raises errors of its own, of Python and of the operating system
            raise DataError(
                f"{self.path}: cannot be read as a parquet file ({' '.join(str(error).split())[:200]}); copy or write it "
                "again"
            ) from error

    def _hint(self) -> str:
        if self.columns == HE_COLUMNS:
            return (
                ". he_x and he_y are places in px of the H&E image; x_location and y_location, in µm of the DAPI image, do "
                "not replace them"
            )
        return "; give transcripts.parquet as Xenium Onboard Analysis writes it"


def control_kind(feature: str) -> str | None:
    """Says what kind of control a feature is.

    Args:
        feature: Its name, such as ``NegControlProbe_00042``.

    Returns:
        How such names begin; None for a gene.
    """
    name = feature.lower()
    return next((kind for kind in CONTROLS if name.startswith(kind)), None)


def read_transcripts(
    path: str | Path, *, genes: Sequence[str] | None = None, min_qv: float = MIN_QV
) -> Transcripts:
    """Reads the transcripts of genes that were decoded well enough.

    The columns are HEST's: ``he_x`` and ``he_y`` in level-0 px of the H&E image. Xenium's own ``x_location`` and
    ``y_location`` are µm of the DAPI image, and no substitute for them.

    Args:
        path: The parquet file.
        genes: Genes to keep, in the order that their numbers follow; None takes all that occur, sorted.
        min_qv: Lowest quality that counts.

    Returns:
        The transcripts.

    Raises:
        DataError: If the file cannot be read, lacks a column, a place is infinite, or no transcript counts.
        MissingPackageError: If pyarrow is not installed.
    """
    table = TranscriptTable(path, genes=genes, min_qv=min_qv)
    parts = [(batch.x, batch.y, batch.gene, batch.qv) for batch in table]
    x, y, gene, qv = (np.concatenate(part) for part in zip(*parts, strict=True))
    kept_genes = table.genes
    if genes is None:
        kept_genes = tuple(sorted(table.genes))
        gene = renumbered(table.genes, kept_genes)[gene]
    return Transcripts(
        path=table.path, genes=kept_genes, x_px=x, y_px=y, gene=gene, qv=qv, left_out=table.left_out
    )


def renumbered(old: Sequence[str], new: Sequence[str]) -> NDArray[np.int32]:
    """Finds the place of each of some genes among the same in another order, (genes,)."""
    place = {name: index for index, name in enumerate(new)}
    return np.array([place[name] for name in old], dtype=np.int32)


def _arrays(path: Path, batch: Any, columns: tuple[str, str]) -> tuple[Any, Any, Any, Any, list[str], Any]:
    x, y, qv = (
        batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64) for name in (*columns, "qv")
    )
    features = batch.column("feature_name")
    if not hasattr(features, "dictionary"):
        features = features.dictionary_encode()
    if features.null_count:
        raise DataError(
            f"{path}: {features.null_count} transcripts have no feature_name; write the table again"
        )
    names = [
        value.decode("utf-8") if isinstance(value, bytes) else str(value)
        for value in features.dictionary.to_pylist()
    ]
    codes = features.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    is_gene = None
    if "is_gene" in batch.schema.names:
        # what the table leaves open is decided by the name
        is_gene = batch.column("is_gene").fill_null(True).to_numpy(zero_copy_only=False).astype(bool)
    return x, y, qv, codes, names, is_gene
