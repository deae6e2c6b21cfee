"""One sample of a phantom cohort: options + its place in the cohort → slide, patches, counts and ground truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .genes import GenePanel, draw_counts, draw_panel
from .morphology import measure_morphology
from .options import MARGIN_UM, PATCH_RESOLUTION_UM_PER_PX, PATCH_SIZE_PX, SPOT_PITCH_UM, PhantomOptions
from .scanner import Scanner, draw_scanner, photograph
from .staining import stain
from .tissue import FIELDS, grow_tissue

_GENES, _STUDY, _SAMPLE = range(3)


@dataclass(frozen=True, kw_only=True)
class PhantomStudy:
    """What the samples of one study share.

    Attributes:
        scanner: Its stain and scanner.
        field_means: Mean of each tissue field.
        gene_level: Shift of each gene's log level, (G,).
    """

    scanner: Scanner
    field_means: dict[str, float]
    gene_level: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PhantomSample:
    """One slide and its spots.

    Attributes:
        sample_id: Such as ``GEN03-02``: study and sample, counted from 1.
        study: Such as ``GEN03``.
        patient: Such as ``GEN03-P1``.
        scanner: Its stain and scanner.
        slide: The slide, (H, W, 3) uint8.
        slide_file: The slide as a TIFF file.
        patches: Patches around the spots, (N, 224, 224, 3) uint8 at 0.5 µm/px.
        coords: Top left corners in px of the slide, (N, 2) int64.
        centres: Spots' centres in px of the slide, (N, 2).
        rows: Row of each spot on the grid, (N,).
        columns: Column of each spot, (N,).
        barcodes: Names of the spots.
        morphology: What drives the genes, (N, 7) in standard units.
        counts: (N, G).
    """

    sample_id: str
    study: str
    patient: str
    scanner: Scanner
    slide: NDArray[np.uint8]
    slide_file: bytes
    patches: NDArray[np.uint8]
    coords: NDArray[np.int64]
    centres: NDArray[np.float64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    barcodes: tuple[str, ...]
    morphology: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def patch_size_slide_px(self) -> int:
        """Side of a patch in px of the slide."""
        return round(PATCH_SIZE_PX * PATCH_RESOLUTION_UM_PER_PX / self.scanner.um_per_px)


def _generator(options: PhantomOptions, *key: int) -> np.random.Generator:
    # one stream for each part, so that a sample depends neither on other samples nor on the order of drawing
    return np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=key))


def cohort_genes(options: PhantomOptions) -> GenePanel:
    """Draws the genes of a cohort."""
    return draw_panel(options, _generator(options, _GENES))


def draw_study(options: PhantomOptions, study: int) -> PhantomStudy:
    """Draws what a study's samples share."""
    generator = _generator(options, _STUDY, study)
    return PhantomStudy(
        scanner=draw_scanner(options.image_shift, generator),
        field_means={name: 0.3 * float(generator.standard_normal()) for name in FIELDS},
        gene_level=0.3 * options.study_effect * generator.standard_normal()
        + options.study_effect * generator.standard_normal(options.num_genes),
    )


def draw_sample(options: PhantomOptions, study: int, sample: int) -> PhantomSample:
    """Draws one sample, independently of the others.

    Args:
        options: The cohort's options.
        study: Index of the study.
        sample: Index of the sample within the study.

    Returns:
        The sample.
    """
    shared = draw_study(options, study)
    scanner = shared.scanner
    generator = _generator(options, _SAMPLE, study, sample)
    rows, columns, positions_um = _spots(options.num_spots)
    width_um, height_um = positions_um.max(0) + MARGIN_UM
    shape = (round(height_um / scanner.um_per_px), round(width_um / scanner.um_per_px))
    means = {
        name: mean + 0.25 * float(generator.standard_normal()) for name, mean in shared.field_means.items()
    }
    tissue = grow_tissue(shape, 1 / scanner.um_per_px, means, generator)
    haematoxylin, eosin, cells = stain(tissue, generator)
    slide, slide_file = photograph(haematoxylin, eosin, scanner, generator)
    centres = positions_um / scanner.um_per_px
    radius_px = options.capture_um / 2 / scanner.um_per_px
    morphology = measure_morphology(tissue, cells, centres[:, 0], centres[:, 1], radius_px)
    counts = draw_counts(
        cohort_genes(options), morphology, positions_um, shared.gene_level, options, generator
    )
    side = round(PATCH_SIZE_PX * PATCH_RESOLUTION_UM_PER_PX / scanner.um_per_px)
    coords = np.rint(centres - side / 2).astype(np.int64)
    name = f"GEN{study + 1:02d}"
    return PhantomSample(
        sample_id=f"{name}-{sample + 1:02d}",
        study=name,
        patient=f"{name}-P{sample // 2 + 1}",
        scanner=scanner,
        slide=slide,
        slide_file=slide_file,
        patches=_cut(slide, coords, side),
        coords=coords,
        centres=centres,
        rows=rows,
        columns=columns,
        barcodes=_barcodes(len(coords), generator),
        morphology=morphology,
        counts=counts,
    )


def _spots(num_spots: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    per_row = math.ceil(math.sqrt(num_spots * math.sqrt(0.75)))
    rows, places = np.divmod(np.arange(num_spots), per_row)
    # Visium counts columns in half pitches, so that every second row sits between the columns of the first
    columns = 2 * places + rows % 2
    positions = np.stack([columns * SPOT_PITCH_UM / 2, rows * SPOT_PITCH_UM * math.sqrt(0.75)], axis=1)
    return rows, columns, positions + MARGIN_UM


def _cut(slide: NDArray[np.uint8], coords: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    image = Image.fromarray(slide)
    size = (PATCH_SIZE_PX, PATCH_SIZE_PX)
    cut = [
        image.crop((x, y, x + side, y + side)).resize(size, Image.Resampling.BICUBIC)
        for x, y in coords.tolist()
    ]
    return np.stack([np.asarray(patch) for patch in cut])


def _barcodes(num: int, generator: np.random.Generator) -> tuple[str, ...]:
    letters = np.array(list("ACGT"))
    barcodes: dict[str, None] = {}
    while len(barcodes) < num:
        barcodes["".join(letters[generator.integers(4, size=16)]) + "-1"] = None
    return tuple(barcodes)
