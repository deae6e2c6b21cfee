"""Transcripts of a Xenium run, placed on its H&E image → the table that fine-tuning pools in tokens (``transcripts/ID.parquet``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.atomic_file import OutputFile, claimed, make_folder, remove_leftovers
from ..runtime.digest import file_fingerprint
from ..runtime.extras import require
from .transcripts import HE_COLUMNS, TranscriptBatch
from .xenium import XeniumFolder

FOLDER = "transcripts"
_RECORD = b"timm_mvhybrid"


def write_placed_transcripts(source: XeniumFolder, path: str | Path) -> int:
    """Writes the transcripts that count, with their places in level-0 px of the image, some at a time.

    The columns are HEST's: ``he_x``, ``he_y``, ``feature_name``, ``qv``. A table that is there already, of the same input
    and options, is kept.

    Args:
        source: The run and its image.
        path: The parquet file.

    Returns:
        Number of transcripts in the table.

    Raises:
        DataError: If the run cannot be read, see ``XeniumFolder.placed``.
        OutputError: If the disk does not take it, or another process writes it.
        MissingPackageError: If pyarrow is not installed.
    """
    path = Path(path)
    placement = source.placement()
    record = json.dumps(
        {
            "inputs": {file.name: file_fingerprint(file) for file in source.files},
            "matrix": placement.matrix.tolist(),
            "morphology_um_per_px": placement.morphology_um_per_px,
            "min_qv": source.min_qv,
        }
    ).encode()
    make_folder(path.parent)
    with claimed(path):
        remove_leftovers(path)
        known = _num_rows(path, record)
        if known is not None:
            return known
        table = source.table()
        arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
        schema = arrow.schema(
            [
                *((name, arrow.float64()) for name in HE_COLUMNS),
                ("feature_name", arrow.dictionary(arrow.int32(), arrow.string())),
                ("qv", arrow.float32()),
            ],
            metadata={_RECORD: record},
        )
        with OutputFile(path) as output:
            with parquet.ParquetWriter(output, schema, compression="zstd") as writer:
                for batch in source.placed(table, placement):
                    writer.write_batch(_record_batch(arrow, schema, batch, table.genes))
                    output.check()
            output.finish()
        return table.num_kept


def _record_batch(arrow: Any, schema: Any, batch: TranscriptBatch, genes: Sequence[str]) -> Any:
    names = arrow.DictionaryArray.from_arrays(arrow.array(batch.gene), arrow.array(genes, arrow.string()))
    columns = [arrow.array(batch.x), arrow.array(batch.y), names, arrow.array(batch.qv)]
    return arrow.record_batch(columns, schema=schema)


def _num_rows(path: Path, record: bytes) -> int | None:
    """Returns the number of transcripts of a table that was made of the same; None of any other."""
    if not path.is_file():
        return None
    try:
        with require("pyarrow.parquet").ParquetFile(path) as file:
            same = (file.schema_arrow.metadata or {}).get(_RECORD) == record
            return int(file.metadata.num_rows) if same else None
    except (OSError, ValueError):  # no parquet file, which is written anew
        return None
