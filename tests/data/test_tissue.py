import dataclasses
import math
import tracemalloc

import numpy as np
import pytest

from timm_mvhybrid.data import DataError, TilingOptions
from timm_mvhybrid.data.tissue import (
    CHROMA_CEILING,
    CHROMA_FLOOR,
    chroma_mask,
    otsu_threshold,
    tile_grid,
    tissue_fraction,
    tissue_mask,
)


def test_otsu_separates_two_modes():
    values = np.concatenate([np.full(900, 10), np.full(100, 60)]).astype(np.uint8)
    assert 10 <= otsu_threshold(values) < 60


@pytest.mark.parametrize("values", [[], [7, 7, 7]])
def test_otsu_of_one_class_is_zero(values):
    assert otsu_threshold(np.array(values, dtype=np.uint8)) == 0


def test_noisy_glass_is_no_tissue():
    noise = np.random.default_rng(0).integers(238, 247, (100, 100, 3), dtype=np.uint8)
    mask, threshold = tissue_mask(noise)
    assert threshold == CHROMA_FLOOR
    assert not mask.any()


def test_pale_tissue_beside_dark_tissue_stays():
    thumbnail = np.full((10, 20, 3), (230, 200, 220), dtype=np.uint8)
    thumbnail[:, 10:] = (150, 30, 140)
    mask, threshold = tissue_mask(thumbnail)
    assert threshold == CHROMA_CEILING
    assert mask.all()


def test_grey_and_black_are_no_tissue():
    assert not tissue_mask(np.zeros((4, 4, 3), dtype=np.uint8))[0].any()


def test_grid_keeps_whole_tiles_in_rows():
    assert tile_grid((600, 512), 256, 256).tolist() == [[0, 0], [256, 0], [0, 256], [256, 256]]


def test_grid_with_overlap():
    assert tile_grid((512, 256), 256, 128).tolist() == [[0, 0], [128, 0], [256, 0]]


def test_grid_keeps_the_last_tile_of_a_fractional_size():
    # 256 px at 0.5 µm/px from 0.3 µm/px: 426.67 px, three of which fill 1280
    assert tile_grid((1280, 427), 256 / 0.6, 256 / 0.6).tolist() == [[0, 0], [427, 0], [853, 0]]


def test_grid_of_a_slide_smaller_than_a_tile_is_empty():
    assert tile_grid((255, 1000), 256, 256).shape == (0, 2)


def test_tissue_fraction_is_the_covered_area():
    mask = np.zeros((20, 40), dtype=bool)
    mask[:10, 5:20] = True
    coords = np.array([[0, 0], [100, 0], [200, 0], [0, 100], [50, 50]])
    fraction = tissue_fraction(mask, coords, 100, (400, 200))
    assert fraction.tolist() == [0.5, 1.0, 0.0, 0.0, 0.5]


def test_tissue_fraction_of_tiles_smaller_than_a_mask_pixel():
    mask = np.array([[True, False]])
    fraction = tissue_fraction(mask, np.array([[0, 0], [14, 0], [19, 9]]), 1, (20, 10))
    assert fraction.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"resolution_um_per_px": 0.0},
        {"patch_size_px": 0},
        {"overlap_px": 256},
        {"overlap_px": -1},
        {"min_tissue": 1.5},
        {"slide_resolution_um_per_px": -0.5},
        {"resolution_um_per_px": math.inf},
        {"slide_resolution_um_per_px": math.inf},
        {"slide_resolution_um_per_px": math.nan},
    ],
)
def test_options_out_of_range(wrong):
    with pytest.raises(DataError, match=str(next(iter(wrong.values())))):
        TilingOptions(**wrong)


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TilingOptions().patch_size_px = 1


def test_fractions_of_tiles_in_any_order_are_counted_pixels():
    mask = np.random.default_rng(0).random((90, 130)) > 0.6
    grid = tile_grid((1300, 900), 97.3, 41.7)
    coords = np.random.default_rng(1).permutation(grid)
    found = tissue_fraction(mask, coords, 97.3, (1300, 900))
    for (x, y), fraction in zip(coords.tolist(), found, strict=True):
        left, top = math.floor(x / 10 + 0.5), math.floor(y / 10 + 0.5)
        right, bottom = math.floor((x + 97.3) / 10 + 0.5), math.floor((y + 97.3) / 10 + 0.5)
        assert fraction == mask[top : min(bottom, 90), left : min(right, 130)].mean()


def test_finding_tissue_takes_less_than_a_byte_a_pixel_beside_the_mask():
    chroma = np.random.default_rng(0).integers(0, 100, (4000, 4000), dtype=np.uint8)
    grid = tile_grid((64000, 64000), 256.0, 256.0)
    tracemalloc.start()
    try:
        mask, _ = chroma_mask(chroma)
        tissue_fraction(mask, grid, 256.0, (64000, 64000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * chroma.size
