"""A sample of any platform + its slide image → patches and counts in the HEST layout, sample by sample."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..runtime.atomic_file import claimed, make_folder, remove_leftovers, write_file
from ..runtime.errors import ParameterError, check_space
from ..runtime.extras import require
from .hest_writer import write_sample
from .sample_record import Recipe, check_record, write_record
from .spot_patches import SpotPatches
from .spot_picture import draw_spots
from .spot_sample import PatchOptions, SpotSample, SpotSource, check_sample_id
from .study_table import LeaveOut, Splits, add_sample, check_row

FOLDER = "prepared"
"""Of records and pictures, beside ``patches`` and ``adata``."""


@dataclass(frozen=True, kw_only=True)
class PreparedSample:
    """What ``prepare_sample`` did.

    Attributes:
        task: The task's folder.
        sample_id: The sample.
        status: ``prepared`` now, or ``kept`` from an earlier run with the same options and inputs.
        num_spots: Spots with a patch and counts.
        num_genes: Genes.
        num_counts: Counts of all spots.
        um_per_px: Size of a level-0 px of the slide image in µm.
        stated_um_per_px: What the image states; None if nothing usable.
        num_over_edge: Patches that reach beyond the image, which is white there.
        notes: Where the sample comes from and what was decided.
        left_out: What each split of the task leaves out: study, patient or sample; empty without splits.
        num_splits: Splits of the task.
        splits_problem: Why there are no splits, or not those of this table; empty otherwise.
        picture: PNG of the spots on the tissue.
        record: JSON of options, inputs and versions.
    """

    task: Path
    sample_id: str
    status: Literal["prepared", "kept"]
    num_spots: int
    num_genes: int
    num_counts: int
    um_per_px: float
    stated_um_per_px: float | None
    num_over_edge: int
    notes: Mapping[str, Any]
    left_out: str
    num_splits: int
    splits_problem: str
    picture: Path
    record: Path


def prepare_sample(
    source: SpotSource,
    slide: str | Path,
    output: str | Path,
    *,
    sample_id: str,
    study: str,
    patient: str | None = None,
    patches: PatchOptions | None = None,
    slide_resolution_um_per_px: float | None = None,
    leave_out: LeaveOut = "auto",
    thumbnail_size_px: int = 1024,
    overwrite: bool = False,
    on_patches: Callable[[int, int], None] | None = None,
) -> PreparedSample:
    """Adds a sample to a task in the HEST layout.

    Written are ``patches/ID.h5``, ``adata/ID.h5ad`` (raw counts; ``uns["spatial"]`` as scanpy and squidpy plot it),
    ``prepared/ID.png`` (the spots on the tissue) and ``prepared/ID.json`` (options, sha256 of the inputs, versions), then
    the sample's row of ``studies.csv`` and the splits. Every file is whole or absent. A sample that is complete, of the
    same inputs and options, is kept; whatever ended a run, the same call finishes it. Processes may add samples to one
    task at the same time.

    Args:
        source: Where spots and counts are, such as ``VisiumFolder``.
        slide: Their slide image: a whole slide, or a JPEG, PNG or other image.
        output: The task's folder; made if there is none.
        sample_id: Name of the sample.
        study: Study that it is of: samples of one study share laboratory, stain and scanner.
        patient: Patient that it is of; None if that is unknown.
        patches: Size and resolution of the patches.
        slide_resolution_um_per_px: Size of a level-0 px of the slide image in µm, where image and spots contradict each
            other or neither says; None takes what the spots give, or else what the image states.
        leave_out: What each split leaves out, see ``write_splits``.
        thumbnail_size_px: Longer side of the small picture of the tissue in px.
        overwrite: Replace a sample that was prepared otherwise.
        on_patches: Called after each few patches with the number done and the total.

    Returns:
        What was done.

    Raises:
        DataError: If the input cannot be used, contradicts the image, or the sample was prepared otherwise.
        ParameterError: If a parameter has a value that it cannot have.
        OutputError: If the disk does not take it, or another process prepares the same sample.

    Examples:
        >>> prepare_sample(
        ...     VisiumFolder(folder=Path("run/outs")), "scan.svs", "ROOT/BREAST", sample_id="B1", study="ours"
        ... )  # doctest: +SKIP
    """
    task, slide = Path(output), Path(slide)
    patches = patches or PatchOptions()
    check_sample_id(sample_id)
    check_row(task, sample_id, study, patient)
    if thumbnail_size_px < 1:
        raise ParameterError(f"`thumbnail_size_px` must be at least 1, not {thumbnail_size_px}")
    for package in ("anndata", "scipy.sparse", "matplotlib.figure"):
        require(package)
    files = [*source.files, slide]
    options = {
        **dataclasses.asdict(patches),
        "slide_resolution_um_per_px": slide_resolution_um_per_px,
        "thumbnail_size_px": thumbnail_size_px,
        "study": study,
        "patient": patient,
        "source": type(source).__name__,
        **_options_of(source),
    }
    recipe = Recipe.of(options, files)
    folder = task / FOLDER
    make_folder(folder)
    record, picture = folder / f"{sample_id}.json", folder / f"{sample_id}.png"
    outputs = (task / "patches" / f"{sample_id}.h5", task / "adata" / f"{sample_id}.h5ad", picture)
    with claimed(record):
        for path in (record, *outputs):
            remove_leftovers(path)
        found = check_record(record, recipe, outputs, overwrite=overwrite)
        status: Literal["prepared", "kept"] = "prepared" if found is None else "kept"
        if found is not None:
            summary = found.summary
        else:
            sample = source.read(sample_id, patches)
            cut = SpotPatches(sample, slide, patches, um_per_px=slide_resolution_um_per_px)
            summary = _summary(sample, cut)
            check_space(outputs[0], len(cut) * patches.patch_size_px**2 * 3)
            downsample = max(max(cut.slide.dimensions) / thumbnail_size_px, 1.0)
            thumbnail = cut.slide.thumbnail(downsample)
            drawing = draw_spots(sample, thumbnail, downsample, cut.um_per_px)
            write_sample(
                task,
                sample_id,
                patches=cut,
                coords=cut.coords,
                barcodes=sample.barcodes,
                counts=sample.counts,
                genes=sample.genes,
                spatial=sample.spatial,
                attributes=cut.attributes,
                spots=sample.columns,
                gene_ids=sample.gene_ids,
                uns={
                    "spatial": {sample_id: _for_plots(sample, cut, thumbnail, downsample)},
                    FOLDER: json.dumps({"options": recipe.options, **summary}, ensure_ascii=False),
                },
                on_patches=on_patches,
                before_naming=lambda: write_record(record, recipe, files, summary, is_complete=False),
            )
            cut.close()
            write_file(picture, drawing)
            write_record(record, recipe, files, summary, is_complete=True)
        splits = add_sample(task, sample_id, study, patient, leave_out)
    return _prepared(task, sample_id, status, summary, splits, picture, record)


def _options_of(source: SpotSource) -> dict[str, Any]:
    """Lists the options of reading, without the folder: that moves, and its files are told by their content."""
    if not dataclasses.is_dataclass(source):
        return {}
    values = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    return {name: value for name, value in values.items() if name != "folder"}


def _summary(sample: SpotSample, cut: SpotPatches) -> dict[str, Any]:
    return {
        "num_spots": len(sample.barcodes),
        "num_genes": len(sample.genes),
        "num_counts": round(float(sample.counts.sum(dtype=np.float64))),
        "um_per_px": cut.um_per_px,
        "stated_um_per_px": cut.stated_um_per_px,
        "patch_size_level0_px": cut.patch_size_level0,
        "num_over_edge": cut.num_over_edge,
        "notes": dict(sample.notes),
    }


def _for_plots(
    sample: SpotSample, cut: SpotPatches, thumbnail: NDArray[np.uint8], downsample: float
) -> dict[str, Any]:
    """Makes what scanpy and squidpy draw spots by."""
    size_um = sample.spot_size_um or cut.patch_size_level0 * cut.um_per_px
    return {
        "images": {"hires": thumbnail},
        "scalefactors": {
            "tissue_hires_scalef": 1 / downsample,
            "spot_diameter_fullres": size_um / cut.um_per_px,
        },
    }


def _prepared(
    task: Path,
    sample_id: str,
    status: Literal["prepared", "kept"],
    summary: Mapping[str, Any],
    splits: Splits,
    picture: Path,
    record: Path,
) -> PreparedSample:
    names = (
        "num_spots",
        "num_genes",
        "num_counts",
        "um_per_px",
        "stated_um_per_px",
        "num_over_edge",
        "notes",
    )
    return PreparedSample(
        task=task,
        sample_id=sample_id,
        status=status,
        **{name: summary[name] for name in names},
        left_out=splits.left_out,
        num_splits=len(splits.groups),
        splits_problem=splits.problem,
        picture=picture,
        record=record,
    )
