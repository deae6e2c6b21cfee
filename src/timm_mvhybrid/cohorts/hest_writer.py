"""Arrays → a task in the HEST layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..data.image_dataset import Patches, write_images
from ..runtime.anndata_file import quiet_anndata, write_anndata
from ..runtime.atomic_file import make_folder, write_files, writing
from ..runtime.errors import EvaluationError
from ..runtime.extras import require
from ..runtime.h5_output import H5Output
from .csv_tables import SPLIT_COLUMNS


def write_sample(
    task: str | Path,
    sample_id: str,
    *,
    patches: Patches,
    coords: NDArray[np.int64],
    barcodes: Sequence[str],
    counts: Any,
    genes: Sequence[str],
    spatial: NDArray[np.float64],
    attributes: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
    spots: Mapping[str, NDArray[Any]] | None = None,
    gene_ids: Sequence[str] = (),
    on_patches: Callable[[int, int], None] | None = None,
    before_naming: Callable[[], None] | None = None,
) -> tuple[Path, Path]:
    """Writes one sample, each file complete or not at all, and none if the disk does not take both.

    Args:
        task: The task's folder; made if there is none.
        sample_id: The sample.
        patches: (spots, H, W, 3), or what reads them one by one.
        coords: Top-left corners at level 0, (spots, 2).
        barcodes: One for each spot.
        counts: Raw counts, (spots, genes), dense or SciPy sparse.
        genes: Gene symbols.
        spatial: Centres in px of the slide, (spots, 2).
        attributes: Of the image dataset, such as ``pixel_size`` and ``downsample``.
        uns: Unstructured annotation of the h5ad, such as the mark of generated data.
        spots: Columns of the h5ad's ``obs``: name → one value for each spot.
        gene_ids: Identifiers of the genes, a column of ``var``; empty leaves it out.
        on_patches: Called after each few patches with the number done and the total.
        before_naming: Called when the disk has everything, before the files get their names.

    Returns:
        The patch h5 and the h5ad.

    Raises:
        EvaluationError: If lengths do not fit.
        OutputError: If the disk does not take it.
    """
    anndata, pandas, sparse = require("anndata"), require("pandas"), require("scipy.sparse")
    lengths = {len(patches), len(coords), len(barcodes), counts.shape[0], len(spatial)}
    if len(lengths) != 1 or counts.shape[1] != len(genes):
        raise EvaluationError(
            f"sample '{sample_id}': patches, coords, barcodes, counts and genes do not fit together"
        )
    paths = Path(task, "patches", f"{sample_id}.h5"), Path(task, "adata", f"{sample_id}.h5ad")
    for path in paths:
        make_folder(path.parent)
    matrix = sparse.csr_matrix(counts)
    # half as large as float64, and as exact for counts below 2^24
    matrix = matrix.astype(np.float32 if matrix.max() < 2**24 else np.float64)
    with H5Output(paths[0]) as patch_output, H5Output(paths[1]) as count_output:
        with quiet_anndata():
            data = anndata.AnnData(
                matrix,
                obs=pandas.DataFrame(dict(spots or {}), index=list(barcodes)),
                var=pandas.DataFrame({"gene_ids": list(gene_ids)} if gene_ids else {}, index=list(genes)),
                obsm={"spatial": np.asarray(spatial, dtype=np.float64)},
                uns=dict(uns or {}),
            )
            write_anndata(count_output.file, data)
        count_output.check()
        write_patches(
            patch_output.file,
            patches,
            coords,
            barcodes,
            attributes or {},
            check=patch_output.check,
            on_patches=on_patches,
        )
        patch_output.settle()
        count_output.settle()
        if before_naming is not None:
            before_naming()
        # an older sample's counts must never stand beside the new one's patches
        with writing(paths[1]):
            paths[1].unlink(missing_ok=True)
        patch_output.finish()
        count_output.finish()
    return paths


def write_patches(
    file: h5py.File,
    patches: Patches,
    coords: NDArray[np.int64],
    barcodes: Sequence[str],
    attributes: Mapping[str, Any],
    *,
    check: Callable[[], None] | None = None,
    on_patches: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the patches of one sample into an open file, see ``write_sample`` and ``write_images``."""
    height, width = np.asarray(patches[0]).shape[:2]
    images = write_images(file, patches, (height, width), check=check, on_patches=on_patches)
    images.attrs.update(attributes)
    file.create_dataset("coords", data=np.asarray(coords, dtype=np.int64))
    names = np.array(list(barcodes), dtype=object)[:, None]
    file.create_dataset("barcode", data=names, dtype=h5py.string_dtype("utf-8"))


def write_split(task: str | Path, number: int, train: Sequence[str], test: Sequence[str]) -> None:
    """Writes one split."""
    folder = Path(task, "splits")
    make_folder(folder)
    tables = split_tables(number, train, test)
    write_files({folder / name: content for name, content in tables.items()})


def split_tables(number: int, train: Sequence[str], test: Sequence[str]) -> dict[str, str]:
    """Spells the two tables of a split: file name → content."""
    tables = {}
    for part, samples in (("train", train), ("test", test)):
        lines = [",".join(SPLIT_COLUMNS)]
        lines += [f"{sample},patches/{sample}.h5,adata/{sample}.h5ad" for sample in samples]
        tables[f"{part}_{number}.csv"] = "\n".join(lines) + "\n"
    return tables
