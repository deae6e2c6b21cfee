"""One sample of a phantom cohort: options + its place in the cohort → stains, slide, patches, counts and ground truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runtime.extras import require
from .cells import LYMPHOCYTE, MITOSIS, Blobs, Cells, place_cells, rasterise
from .genes import GenePanel, draw_counts, draw_panel, matched_genes
from .gratings import CHART_PITCH_UM, draw_alignment, stain_chart
from .morphology import measure_morphology
from .options import PhantomOptions
from .random_fields import Map, fibres, grain, resize, smooth_field
from .scanner import Scanner, draw_scanner, photograph
from .spots import MARGIN_UM, SPOT_PITCH_UM, cut_patches, draw_barcodes, patch_side_px, place_spots
from .tissue import (
    EPITHELIUM,
    FAT,
    FIELDS,
    GLASS,
    LUMEN,
    NECROSIS,
    STROMA,
    Tissue,
    grow_tissue,
    jittered_grid,
)


def stain(tissue: Tissue, generator: np.random.Generator) -> tuple[Map, Map, Cells]:
    """Stains a section with haematoxylin and eosin.

    Returns:
        Concentration of haematoxylin, (H, W) float32; of eosin; and the cells.
    """
    gaussian_filter = require("scipy.ndimage").gaussian_filter

    shape, scale = tissue.label.shape, tissue.px_per_um
    cosine, sine = _directions(tissue, generator)
    angle: Map = np.arctan2(sine, cosine) * np.float32(0.5)
    cells = place_cells(tissue, angle, generator)
    half = cosine.shape
    strands = fibres(cosine, sine, 7 * scale / 2, 0.62 * scale / 2, generator)
    bundles = fibres(cosine, sine, 26 * scale / 2, 2.6 * scale / 2, generator)
    fibrosis = resize(tissue.fields["fibrosis"], half)
    dense = 1 / (1 + np.exp(-1.6 * fibrosis))
    collagen = 0.25 + 0.3 * dense + (0.11 + 0.02 * dense) * strands + 0.1 * bundles
    # clefts: loose stroma tears along its bundles
    collagen *= 1 / (1 + np.exp(-7 * (bundles + 0.35 * strands + 0.75 + 0.7 * dense)))
    eosin_of = np.clip(resize(collagen, shape), 0.02, None)
    haematoxylin = 0.05 + 0.05 * eosin_of
    fine = grain(shape, 0.38 * scale, 1.0 * scale, generator)
    slow = resize(smooth_field(half, 7 * scale / 2, generator), shape)
    label = tissue.label
    eosin = eosin_of
    tumour = resize(1 / (1 + np.exp(-2.2 * tissue.fields["tumour"])).astype(np.float32), shape)

    region = label == EPITHELIUM
    eosin[region] = 0.4 + 0.05 * slow[region] + 0.03 * fine[region]
    # malignant cytoplasm takes up more of the nuclear stain
    haematoxylin[region] = 0.13 + 0.17 * tumour[region] + 0.03 * slow[region]
    region = label == LUMEN
    secretion = np.clip(slow[region] - 0.9, 0, 1)
    eosin[region] = 0.015 + 0.3 * secretion * tumour[region] + 0.02 * np.abs(fine[region]) * (secretion > 0)
    haematoxylin[region] = 0.01 + 0.10 * secretion
    region = label == NECROSIS
    if region.any():
        crumbs = grain(shape, 1.1 * scale, 5 * scale, generator)[region]
        eosin[region] = 0.55 + 0.1 * slow[region] + 0.12 * crumbs + 0.05 * fine[region]
        haematoxylin[region] = 0.13 + 0.04 * slow[region] + 0.03 * crumbs
    region = label == FAT
    if region.any():
        walls = _fat_walls(shape, scale, generator)[region]
        eosin[region] = 0.01 + 0.42 * walls
        haematoxylin[region] = 0.06 * walls

    _add_mucin(cells.mucin, label, haematoxylin, eosin)
    # borders between compartments are never sharp to the pixel
    haematoxylin = gaussian_filter(haematoxylin, 0.45 * scale, truncate=3)
    eosin = gaussian_filter(eosin, 0.35 * scale, truncate=3)
    _add_red_cells(tissue, eosin, haematoxylin, generator)
    thickness = 1 + 0.05 * resize(smooth_field(half, 200 * scale / 2, generator), shape)
    _add_nuclei(cells, haematoxylin, eosin, fine, generator)
    glass = gaussian_filter((label == GLASS).astype(np.float32), 0.8 * scale)
    present = np.clip(thickness, 0.8, 1.2) * (1 - glass)
    return np.clip(haematoxylin * present, 0, None), np.clip(eosin * present, 0, None), cells


def _directions(tissue: Tissue, generator: np.random.Generator) -> tuple[Map, Map]:
    """Directions of the fibres at half the resolution: along the glands near them, wavy elsewhere."""
    ndimage = require("scipy.ndimage")
    gaussian_filter, sobel = ndimage.gaussian_filter, ndimage.sobel

    scale = tissue.px_per_um / 2
    half = (math.ceil(tissue.label.shape[0] / 2), math.ceil(tissue.label.shape[1] / 2))
    wander = 1.3 * smooth_field(half, 110 * scale, generator) + 0.28 * smooth_field(
        half, 14 * scale, generator
    )
    glands = gaussian_filter((tissue.gland_of[::2, ::2] >= 0).astype(np.float32), 9 * scale)
    down, right = sobel(glands, 0), sobel(glands, 1)
    steepness = np.hypot(down, right)
    tangent = np.arctan2(down, right) + np.float32(math.pi / 2)
    weight = 3 * steepness / (steepness + np.float32(0.4 / (9 * scale)))
    cosine = np.cos(2 * wander) + weight * np.cos(2 * tangent)
    sine = np.sin(2 * wander) + weight * np.sin(2 * tangent)
    length = np.hypot(cosine, sine) + np.float32(1e-6)
    return cosine / length, sine / length


def _fat_walls(shape: tuple[int, int], scale: float, generator: np.random.Generator) -> Map:
    """Walls between fat cells: where the two nearest cell centres are equally far."""
    x, y = jittered_grid(shape, 52 * scale, 0.2, generator)
    half = (math.ceil(shape[0] / 2), math.ceil(shape[1] / 2))
    grid = np.mgrid[: half[0], : half[1]].reshape(2, -1).T * 2.0
    nearest = require("scipy.spatial").cKDTree(np.stack([y, x], 1)).query(grid, k=2)[0].astype(np.float32)
    gap = (nearest[:, 1] - nearest[:, 0]).reshape(half) / scale
    return resize(np.exp(-((gap / 1.5) ** 2)), shape)


def _add_mucin(drops: Blobs, label: NDArray[np.uint8], haematoxylin: Map, eosin: Map) -> None:
    cover = rasterise(drops, label.shape)
    inside = label.ravel()[cover.pixel] == EPITHELIUM
    pixel, alpha = cover.pixel[inside], cover.alpha[inside] * 0.85
    eosin.ravel()[pixel] *= 1 - alpha
    flat = haematoxylin.ravel()
    flat[pixel] += alpha * (0.11 - flat[pixel])


def _add_red_cells(tissue: Tissue, eosin: Map, haematoxylin: Map, generator: np.random.Generator) -> None:
    """Capillaries: small clear spaces in the stroma with red cells in them."""
    shape, scale = tissue.label.shape, tissue.px_per_um
    num = round(shape[0] * shape[1] / (scale * 170) ** 2)
    x, y = generator.uniform(0, shape[1], num), generator.uniform(0, shape[0], num)
    width = generator.uniform(6, 13, num) * scale
    angle = generator.uniform(0, math.pi, num)
    vessels = Blobs.make(x, y, width * generator.uniform(1, 2.2, num), width, angle, 0.14, generator)
    cover = rasterise(vessels, shape)
    clear = tissue.label.ravel()[cover.pixel] == STROMA
    pixel, alpha = cover.pixel[clear], cover.alpha[clear]
    eosin.ravel()[pixel] *= 1 - 0.9 * alpha
    haematoxylin.ravel()[pixel] *= 1 - 0.9 * alpha
    within = np.zeros(shape[0] * shape[1], bool)
    within[pixel[cover.level[clear] < 0.85]] = True
    cell_x, cell_y = jittered_grid(shape, 5.6 * scale, 0.3, generator)
    row = np.clip(cell_y.astype(int), 0, shape[0] - 1)
    kept = within[row * shape[1] + np.clip(cell_x.astype(int), 0, shape[1] - 1)]
    kept &= generator.uniform(size=len(kept)) < 0.7
    cell_x, cell_y = cell_x[kept], cell_y[kept]
    radius = generator.uniform(2.6, 3.3, len(cell_x)) * scale
    discs = Blobs.make(cell_x, cell_y, radius, radius * 0.9, cell_x * 0, 0.08, generator)
    cover = rasterise(discs, shape)
    flat = eosin.ravel()
    flat[cover.pixel] += cover.alpha * (0.95 - flat[cover.pixel])


def _add_nuclei(
    cells: Cells, haematoxylin: Map, eosin: Map, fine: Map, generator: np.random.Generator
) -> None:
    cover = rasterise(cells.outline, haematoxylin.shape)
    owner, level = cover.owner, cover.level
    kind = cells.kind[owner]
    density = cells.haematoxylin[owner]
    rim = np.exp(-(((level - 0.9) / 0.13) ** 2))
    # chromatin gathers at the membrane; a mitosis has none
    profile = np.where(kind == MITOSIS, 1, 0.9 + 0.28 * rim)
    texture = cells.chromatin[owner] * fine.ravel()[cover.pixel]
    flat, flat_eosin = haematoxylin.ravel(), eosin.ravel()
    body = density * np.clip(profile + texture, 0.05, None)
    body += _nucleoli(cells, cover.pixel, owner, haematoxylin.shape, generator)
    flat[cover.pixel] += cover.alpha * (np.clip(body, 0.05, None) - flat[cover.pixel])
    under = np.where(kind == LYMPHOCYTE, 0.12, 0.2).astype(np.float32)
    flat_eosin[cover.pixel] += cover.alpha * (under - flat_eosin[cover.pixel])


def _nucleoli(
    cells: Cells,
    pixel: NDArray[np.int64],
    owner: NDArray[np.int64],
    shape: tuple[int, int],
    generator: np.random.Generator,
) -> Map:
    """Dark dots, balanced by the rest of the nucleus, so that its mean stays."""
    outline = cells.outline
    with_one = np.flatnonzero(cells.nucleolus > 0)
    num = len(with_one)
    radius = np.sqrt(outline.major * outline.minor)[with_one]
    away = generator.uniform(0, 0.35, num) * radius
    angle = generator.uniform(0, 2 * math.pi, num)
    size = 0.27 * radius
    dots = Blobs.make(
        outline.x[with_one] + away * np.cos(angle),
        outline.y[with_one] + away * np.sin(angle),
        size,
        size,
        angle,
        0.05,
        generator,
    )
    cover = rasterise(dots, shape)
    spots = np.zeros(shape[0] * shape[1], np.float32)
    source = np.full(shape[0] * shape[1], -1, np.int32)
    spots[cover.pixel] = cover.alpha * cells.nucleolus[with_one[cover.owner]]
    source[cover.pixel] = with_one[cover.owner]
    added: Map = np.where(source[pixel] == owner, spots[pixel], 0).astype(np.float32)
    num_pixels = np.bincount(owner, minlength=len(cells.kind))
    total = np.bincount(owner, weights=added, minlength=len(cells.kind))
    paid = (total / np.maximum(num_pixels, 1)).astype(np.float32)
    return added - paid[owner]


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
        morphology: What drives the genes, (N, factors) in standard units.
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
        return patch_side_px(self.scanner.um_per_px)


def _generator(options: PhantomOptions, *key: int) -> np.random.Generator:
    # one stream for each part, so that a sample depends neither on other samples nor on the order of drawing
    return np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=key))


def cohort_genes(options: PhantomOptions) -> GenePanel:
    """Draws the genes of a cohort."""
    return draw_panel(options, _generator(options, _GENES))


def draw_study(options: PhantomOptions, study: int) -> PhantomStudy:
    """Draws what a study's samples share."""
    generator = _generator(options, _STUDY, study)
    matched = matched_genes(options)
    return PhantomStudy(
        scanner=draw_scanner(options.image_shift, generator),
        field_means={name: 0.3 * float(generator.standard_normal()) for name in FIELDS},
        gene_level=0.3 * options.study_effect * generator.standard_normal()
        + options.study_effect * generator.standard_normal(matched.max() + 1)[matched],
    )


def draw_sample(options: PhantomOptions, study: int, sample: int) -> PhantomSample:
    """Draws one sample, independently of the others.

    Args:
        options: The cohort's options.
        study: Index of the study.
        sample: Index of the sample within the study.
    """
    shared = draw_study(options, study)
    scanner = shared.scanner
    generator = _generator(options, _SAMPLE, study, sample)
    pitch_um = CHART_PITCH_UM if options.bands else SPOT_PITCH_UM
    rows, columns, positions_um = place_spots(options.num_spots, pitch_um)
    width_um, height_um = positions_um.max(0) + MARGIN_UM
    shape = (round(height_um / scanner.um_per_px), round(width_um / scanner.um_per_px))
    centres = positions_um / scanner.um_per_px
    side = patch_side_px(scanner.um_per_px)
    coords = np.rint(centres - side / 2).astype(np.int64)
    if options.bands:
        morphology = draw_alignment(positions_um, len(options.frequency_bands), generator)
        haematoxylin, eosin = stain_chart(
            shape, coords, side, morphology, options.frequency_bands, options.band_contrast, generator
        )
    else:
        means = {
            name: mean + 0.25 * float(generator.standard_normal())
            for name, mean in shared.field_means.items()
        }
        tissue = grow_tissue(shape, 1 / scanner.um_per_px, means, generator)
        haematoxylin, eosin, cells = stain(tissue, generator)
        radius_px = options.capture_um / 2 / scanner.um_per_px
        morphology = measure_morphology(tissue, cells, centres[:, 0], centres[:, 1], radius_px)
    slide, slide_file = photograph(haematoxylin, eosin, scanner, generator)
    counts = draw_counts(
        cohort_genes(options), morphology, positions_um, shared.gene_level, options, generator
    )
    name = f"GEN{study + 1:02d}"
    return PhantomSample(
        sample_id=f"{name}-{sample + 1:02d}",
        study=name,
        patient=f"{name}-P{sample // 2 + 1}",
        scanner=scanner,
        slide=slide,
        slide_file=slide_file,
        patches=cut_patches(slide, coords, side),
        coords=coords,
        centres=centres,
        rows=rows,
        columns=columns,
        barcodes=draw_barcodes(len(coords), generator),
        morphology=morphology,
        counts=counts,
    )
