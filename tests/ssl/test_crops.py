import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.ssl.config import CropConfig
from timm_mvhybrid.ssl.counter_random import combine
from timm_mvhybrid.ssl.crops import (
    CropBatch,
    CropGeometry,
    crop_keys,
    cut,
    draw_geometry,
    make_crops,
)

SMALL = CropConfig(global_size_px=32, local_size_px=14, num_local=3)


def same_distribution(first, second):
    """Kolmogorov and Smirnov's test, wrong once in a thousand times."""
    values = np.sort(np.concatenate([first, second]))
    shares = [
        np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)
    ]
    return np.abs(shares[0] - shares[1]).max() < 1.95 * np.sqrt(1 / len(first) + 1 / len(second))


def picture(height=60, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "geometry",
    [
        CropGeometry(3, 5, 40, 30),
        CropGeometry(0, 0, 60, 48, horizontal_flip=True),
        CropGeometry(59, 47, 1, 1, vertical_flip=True),
        CropGeometry(10, 0, 7, 48, horizontal_flip=True, vertical_flip=True, quarter_turns=3),
        CropGeometry(0, 0, 50, 20, quarter_turns=1),
    ],
)
def test_a_crop_is_torchvisions(geometry):
    image = torch.from_numpy(picture()).permute(2, 0, 1)
    expected = F.resized_crop(
        image,
        geometry.top,
        geometry.left,
        geometry.height,
        geometry.width,
        [32, 32],
        InterpolationMode.BICUBIC,
        antialias=True,
    )
    if geometry.horizontal_flip:
        expected = F.horizontal_flip(expected)
    if geometry.vertical_flip:
        expected = F.vertical_flip(expected)
    expected = F.rotate(expected, 90.0 * geometry.quarter_turns)
    crop = cut(image, geometry, 32)
    assert crop.dtype == torch.uint8
    assert torch.equal(crop, expected)


@pytest.mark.parametrize(("size", "scale"), [((60, 48), (0.32, 1.0)), ((224, 224), (0.05, 0.32))])
def test_boxes_are_distributed_as_torchvisions(size, scale):
    geometries = draw_geometry(combine(0, np.arange(3000)), size, scale, CropConfig())
    ours = np.array([[g.top, g.left, g.height, g.width] for g in geometries])
    torch.manual_seed(0)
    blank = torch.empty(3, *size)
    theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(3000)])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= np.array(size)).all()
    for column in range(4):
        assert same_distribution(ours[:, column], theirs[:, column])
    assert same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert same_distribution(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])


@pytest.mark.parametrize("size", [(10, 400), (400, 10)])
def test_where_no_box_fits_the_largest_centred_one_is_taken(size):
    expected = RandomResizedCrop.get_params(torch.empty(3, *size), [0.9, 1.0], [3 / 4, 4 / 3])
    (geometry,) = draw_geometry(combine(0), size, (0.9, 1.0), CropConfig())
    assert (geometry.top, geometry.left, geometry.height, geometry.width) == expected


def test_flips_and_rotations_come_with_their_probabilities():
    options = CropConfig(horizontal_flip=0.5, vertical_flip=0.2, rotation=True)
    drawn = draw_geometry(combine(1, np.arange(4000)), (32, 32), (0.3, 1.0), options)
    assert abs(np.mean([g.horizontal_flip for g in drawn]) - 0.5) < 0.03
    assert abs(np.mean([g.vertical_flip for g in drawn]) - 0.2) < 0.025
    turns = np.bincount([g.quarter_turns for g in drawn], minlength=4) / 4000
    assert np.abs(turns - 0.25).max() < 0.03
    plain = draw_geometry(combine(1, np.arange(200)), (32, 32), (0.3, 1.0), CropConfig(horizontal_flip=0.0))
    assert not any(g.horizontal_flip or g.vertical_flip or g.quarter_turns for g in plain)
    assert [(g.top, g.width) for g in plain] == [(g.top, g.width) for g in drawn[:200]]


def test_rows_are_crop_major_and_do_not_depend_on_the_batch():
    images = [picture(seed=0), Image.fromarray(picture(64, 64, seed=1)), picture(32, 70, seed=2)]
    keys = np.array([11, 22, 33])
    global_crops, local_crops = make_crops(images, keys, SMALL)
    assert global_crops.shape == (6, 3, 32, 32)
    assert local_crops.shape == (9, 3, 14, 14)
    assert global_crops.dtype == local_crops.dtype == torch.uint8
    for i, image in enumerate(images):
        alone = make_crops([image], keys[i : i + 1], SMALL)
        assert torch.equal(global_crops[i::3], alone[0])
        assert torch.equal(local_crops[i::3], alone[1])
    assert not torch.equal(global_crops[0], global_crops[3])


def test_crops_of_one_image_differ_and_so_do_keys():
    keys = crop_keys(np.array([1, -1, 2**62]), 10)
    assert keys.shape == (10, 3)
    assert len(set(keys.ravel().tolist())) == 30


def test_global_and_local_crops_have_the_scales_of_theirs():
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 200, 3))
    global_crops, local_crops = make_crops([ramp] * 40, np.arange(40), SMALL)

    def extent(crops):
        rows = crops[:, 0].float().mean(2)
        return rows.amax(1) - rows.amin(1)

    # a square root of the scale, times the ratio's
    assert extent(global_crops).min() > 200 * (0.32 * 3 / 4) ** 0.5 - 12
    assert extent(local_crops).max() < 200 * (0.32 * 4 / 3) ** 0.5
    assert extent(local_crops).min() < 60


def test_no_local_crops_and_tiny_patches():
    options = CropConfig(global_size_px=8, local_size_px=4, num_local=0)
    global_crops, local_crops = make_crops([picture(1, 1), picture(1, 9)], np.arange(2), options)
    assert local_crops.shape == (0, 3, 4, 4)
    assert torch.equal(global_crops[0, :, 0, 0], torch.from_numpy(picture(1, 1)[0, 0]))


def test_a_batch_moves_with_its_crops_and_leaves_its_keys():
    crops = make_crops([picture()], np.arange(1), SMALL)
    batch = CropBatch(
        step=7,
        global_crops=crops[0],
        local_crops=crops[1],
        sample_keys=torch.tensor([3]),
        indices=torch.tensor([5]),
    )
    moved = batch.to("meta")
    assert {moved.global_crops.device.type, moved.local_crops.device.type} == {"meta"}
    assert (moved.step, moved.sample_keys.tolist(), moved.indices.tolist()) == (7, [3], [5])
    assert not batch.global_crops.is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_is_pinned_with_its_crops():
    crops = make_crops([picture()], np.arange(1), SMALL)
    batch = CropBatch(
        step=7,
        global_crops=crops[0],
        local_crops=crops[1],
        sample_keys=torch.tensor([3]),
        indices=torch.tensor([5]),
    ).pin_memory()
    assert batch.global_crops.is_pinned()
    assert batch.local_crops.is_pinned()
    assert torch.equal(batch.to("cuda").global_crops.cpu(), crops[0])


def test_cropping_leaves_torchs_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make_crops([picture()], np.arange(1), SMALL)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_local": -1}, r"`crops\.num_local` is -1; it must be at least 0"),
        ({"local_size_px": 0}, r"`crops\.local_size_px` is 0; it must be at least 1"),
        (
            {"global_scale": (0.5, 0.3)},
            r"`crops\.global_scale` is \(0\.5, 0\.3\); it must be two rising numbers above 0, at most 1",
        ),
        ({"local_scale": (0.0, 0.3)}, "local_scale"),
        ({"vertical_flip": 1.5}, r"`crops\.vertical_flip` is 1\.5; it must be between 0 and 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(PretrainError, match=message):
        CropConfig(**options)
