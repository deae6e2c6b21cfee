"""Masks: DINOv2's rule, on any grid, from (seed, step, crop) alone."""

import random

import numpy as np
import pytest
import torch

from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.ssl.masking import MaskedPatches, masks_of_step


def draw_masks(num_images, grid=(16, 16), **options):
    return masks_of_step(grid, positions=range(num_images), num_images=num_images, **options)


def test_masks_depend_on_seed_step_and_crop_alone():
    def draw(**key):
        return draw_masks(4, **{"seed": 1, "step": 2, **key})

    first = draw()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    torch.testing.assert_close(draw(), first, rtol=0, atol=0)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    for key in ({"seed": 0}, {"step": 0}):
        assert not torch.equal(draw(**key), first)
    shown = first[first.any(dim=1)]
    assert len(shown.unique(dim=0)) == len(shown) == 4


def test_processes_draw_their_images_masks_of_the_whole_step():
    whole = draw_masks(6, seed=3, step=4).unflatten(0, (2, 6))
    for positions in ([0, 1, 2], [3, 4, 5], [5, 1]):
        found = masks_of_step((16, 16), positions=positions, num_images=6, seed=3, step=4)
        torch.testing.assert_close(found.unflatten(0, (2, -1)), whole[:, positions], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("num_images", "share", "expected"), [(32, 0.5, 32), (3, 0.6, 3), (3, 1.0, 6), (3, 0.0, 0)]
)
def test_a_share_of_the_crops_is_masked_anywhere_in_the_batch(num_images, share, expected):
    masked = torch.stack([draw_masks(num_images, share=share, step=step).any(dim=1) for step in range(20)])
    assert (masked.sum(dim=1) == expected).all()
    if 0 < expected < 2 * num_images:
        # shuffled: every crop is masked at times and at times not
        assert masked.any(dim=0).all()
        assert not masked.all(dim=0).any()


def test_ratios_are_spread_over_their_range():
    for step in range(5):
        counts = draw_masks(64, ratio=(0.1, 0.5), step=step).sum(dim=1)
        counts = counts[counts > 0].sort().values
        bounds = 256 * torch.linspace(0.1, 0.5, 65)
        assert (counts <= bounds[1:]).all()
        # some fall short where no block fits any more
        assert (counts >= bounds[:-1].floor() - 6).float().mean() > 0.9
        assert (counts.float() - (bounds[:-1] + bounds[1:]) / 2).abs().mean() < 4


def test_masks_are_made_of_blocks():
    masks = draw_masks(32, ratio=(0.3, 0.3), share=1.0).unflatten(1, (16, 16))
    right, below = masks[:, :, 1:] & masks[:, :, :-1], masks[:, 1:] & masks[:, :-1]
    neighbours = (right.sum() + below.sum()) / masks.sum()
    # 2 × 0.3 if patches were drawn one by one
    assert neighbours > 1.2


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (5, 1), (2, 2), (3, 3), (4, 4), (7, 16)])
def test_any_grid_can_be_masked(grid):
    num_patches = grid[0] * grid[1]
    total = 0
    for step in range(20):
        masks = draw_masks(2, grid, step=step)
        assert masks.shape == (4, num_patches)
        assert masks.dtype == torch.bool
        assert masks.sum(dim=1).max() <= num_patches // 2
        total += int(masks.sum())
    assert (total > 0) == (num_patches > 1)


def test_entries_follow_the_mask_and_images_count_alike():
    mask = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    masked = MaskedPatches.of(mask, torch.device("cpu"))
    assert masked.positions.tolist() == [0, 2, 7]
    torch.testing.assert_close(
        masked.row_weights, torch.tensor([1 / 6, 1 / 6, 1 / 3]).double(), rtol=1e-6, atol=0
    )
    patches = torch.arange(9.0).reshape(3, 3, 1)
    assert masked.select(patches).flatten().tolist() == patches[mask].flatten().tolist() == [0, 2, 7]
    nothing = MaskedPatches.of(torch.zeros(2, 4, dtype=torch.bool), torch.device("cpu"))
    assert nothing.select(torch.zeros(2, 4, 5)).shape == (0, 5)
    assert nothing.row_weights.shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (0, 4)}, "4 images of 0 × 4 patches"),
        ({"share": 1.5}, r"`share` is 1\.5"),
        ({"ratio": (0.5, 0.1)}, r"`ratio` \(0\.5, 0\.1\)"),
    ],
)
def test_impossible_masks_are_refused(options, message):
    with pytest.raises(PretrainError, match=message):
        draw_masks(4, **{"grid": (4, 4), **options})
