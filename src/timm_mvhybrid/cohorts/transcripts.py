"""Xenium's table of transcripts (parquet) → places and genes of those that count, and how many do not and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

COLUMNS = ("he_x", "he_y", "feature_name", "qv")
"""Columns that are read: place in level-0 px of the H&E image, name of the feature, Phred-scaled quality."""

_BATCH_ROWS = 1 << 20


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
        num_controls: Transcripts of features that are no genes, by the beginning of their name.
        num_low_quality: Transcripts of genes below the quality asked for.
        num_other_genes: Transcripts of genes that were not asked for.
        num_without_place: Transcripts without a place in the image.
    """

    path: Path
    genes: tuple[str, ...]
    x_px: NDArray[np.float64]
    y_px: NDArray[np.float64]
    gene: NDArray[np.int32]
    qv: NDArray[np.float32]
    num_controls: dict[str, int]
    num_low_quality: int
    num_other_genes: int
    num_without_place: int

    def __len__(self) -> int:
        """Returns the number of transcripts that count."""
        return len(self.x_px)


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
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a parquet table of transcripts")
    number = {} if genes is None else unique_positions(path, "gene", list(genes), "ask for each gene once")
    parts: list[tuple[NDArray[Any], ...]] = []
    dropped: Counter[str] = Counter()
    controls: Counter[str] = Counter()
    for x, y, qv, codes, names in _batches(path):
        kinds = [control_kind(name) for name in names]
        for code, times in enumerate(np.bincount(codes, minlength=len(names)).tolist()):
            if (kind := kinds[code]) is not None and times:
                controls[kind] += times
        if genes is None:
            for name, kind in zip(names, kinds, strict=True):
                if kind is None:
                    number.setdefault(name, len(number))
        of_name = np.array(
            [-2 if kind else number.get(name, -1) for name, kind in zip(names, kinds, strict=True)], np.int32
        )
        gene = of_name[codes] if len(codes) else np.empty(0, np.int32)
        good, known, placed = qv >= min_qv, gene >= 0, ~(np.isnan(x) | np.isnan(y))
        dropped["quality"] += int((~good & known).sum())
        dropped["other"] += int((gene == -1).sum())
        dropped["place"] += int((known & good & ~placed).sum())
        kept = known & good & placed
        parts.append((x[kept], y[kept], gene[kept], qv[kept]))
    x, y, gene, qv = (
        (np.concatenate(part) for part in zip(*parts, strict=True)) if parts else [np.empty(0)] * 4
    )
    if not len(x):
        raise DataError(
            f"{path}: no transcript counts ({dropped['quality']} below quality {min_qv:g}, {sum(controls.values())} of "
            f"controls, {dropped['other']} of other genes, {dropped['place']} without a place); check the table and the genes"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError(f"{path}: he_x or he_y is infinite; write the table again")
    kept_genes = tuple(number)
    if genes is None:
        kept_genes = tuple(sorted(number))
        place = {name: index for index, name in enumerate(kept_genes)}
        gene = np.array([place[name] for name in number], dtype=np.int32)[gene]
    return Transcripts(
        path=path,
        genes=kept_genes,
        x_px=x,
        y_px=y,
        gene=gene.astype(np.int32),
        qv=qv.astype(np.float32),
        num_controls=dict(controls),
        num_low_quality=dropped["quality"],
        num_other_genes=dropped["other"],
        num_without_place=dropped["place"],
    )


def _batches(path: Path) -> Iterator[tuple[Any, Any, Any, Any, list[str]]]:
    """Yields places, qualities, and features as codes of a list of names, some rows at a time."""
    parquet = require("pyarrow.parquet")
    require("pyarrow.compute")
    try:
        with parquet.ParquetFile(path) as file:
            have = file.schema_arrow.names
            missing = [name for name in COLUMNS if name not in have]
            if missing:
                raise DataError(
                    f"{path}: lacks the column '{missing[0]}'; it has {', '.join(have)}. he_x and he_y are places in px "
                    "of the H&E image; x_location and y_location, in µm of the DAPI image, do not replace them"
                )
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(COLUMNS)):
                yield _arrays(path, batch)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises errors of its own, of Python and of the operating system
        raise DataError(
            f"{path}: cannot be read as a parquet file ({' '.join(str(error).split())[:200]}); copy or write it again"
        ) from error


def _arrays(path: Path, batch: Any) -> tuple[Any, Any, Any, Any, list[str]]:
    x, y, qv = (
        batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("he_x", "he_y", "qv")
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
    return x, y, qv, features.indices.to_numpy(zero_copy_only=False).astype(np.int64), names
