import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from support.bounds import gamma
from torchvision.transforms.v2 import functional as F

from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.ssl.augmentation import DeviceAugmentation, jitter_stains, make_pil_crops
from timm_mvhybrid.ssl.config import CropConfig
from timm_mvhybrid.ssl.counter_random import combine
from timm_mvhybrid.ssl.crops import CropBatch, crop_keys, make_crops
from timm_mvhybrid.ssl.photometric import (
    COLOUR_OPERATIONS,
    PhotometricOptions,
    adjust_hue,
    draw_parameters,
    gaussian_blur,
    grayscale,
)

THEIRS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
CROPS = CropConfig(global_size_px=32, local_size_px=14, num_local=3)
IDENTITY = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def images(num_images=6, size=24, seed=0):
    """Random pixels, some of them black, white or grey, where hue and saturation are undefined."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num_images, 3, size, size), generator=generator, dtype=torch.uint8)
    pixels[:, :, 0], pixels[:, :, 1] = 0, 255
    pixels[:, :, 2] = pixels[:, :1, 2]
    return pixels


def smooth_patches(num_images, size=48):
    """Colours that vary slowly, as tissue does beside noise."""
    noise = np.random.default_rng(0).integers(70, 250, (num_images, size // 8, size // 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(small).resize((size, size))) for small in noise])


def batch_of(global_crops, local_crops, keys):
    keys = torch.as_tensor(keys)
    return CropBatch(
        step=0,
        global_crops=global_crops,
        local_crops=local_crops,
        sample_keys=keys,
        indices=torch.arange(len(keys)),
    )


@pytest.mark.parametrize("number", range(4))
def test_colours_change_as_torchvisions_do(number):
    pixels = images().float() / 255
    amounts = torch.tensor([-0.5, -0.1, 0.0, 0.03, 0.1, 0.5]) + (0 if number == 3 else 1)
    before = pixels.clone()
    ours = COLOUR_OPERATIONS[number](pixels, amounts)
    assert torch.equal(pixels, before)
    for row, amount in enumerate(amounts.tolist()):
        # of numbers up to 1, each from some roundings, in ours and in theirs; the hue is reckoned in sixths of its circle
        bound = 2 * gamma(30 if number == 3 else 10, torch.float32)
        torch.testing.assert_close(ours[row], THEIRS[number](pixels[row], amount), atol=bound, rtol=0)


def test_grayscale_is_torchvisions():
    pixels = images().float() / 255
    torch.testing.assert_close(grayscale(pixels), F.rgb_to_grayscale(pixels), atol=1e-6, rtol=0)


def test_hue_turns_primary_colours_into_each_other():
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(3, -1, 1, 1)
    turned = adjust_hue(red, torch.tensor([1 / 3, -1 / 3, 0.5]))[:, :, 0, 0]
    torch.testing.assert_close(turned, torch.tensor([[0, 1.0, 0], [0, 0, 1], [0, 1, 1]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [24, 5])
def test_each_image_is_blurred_by_its_own_sigma(size):
    pixels = images(size=size).float() / 255
    sigmas = [0.1, 0.3, 0.7, 1.0, 1.5, 2.0]
    ours = gaussian_blur(pixels, torch.tensor(sigmas), 9)
    for row, sigma in enumerate(sigmas):
        expected = F.gaussian_blur(pixels[row], [9, 9], [sigma, sigma])
        torch.testing.assert_close(ours[row], expected, atol=2e-6, rtol=0)


def test_images_smaller_than_the_kernel_are_mirrored_again_and_again():
    pixels = torch.rand(1, 3, 3, 1, dtype=torch.float64)
    weights = torch.tensor([np.exp(-0.5 * (d / 2.0) ** 2) for d in range(-4, 5)], dtype=torch.float64)
    column = pixels[0, :, :, 0]
    rows = [[0, 1, 2, 1, 0, 1, 2, 1, 0], [1, 2, 1, 0, 1, 2, 1, 0, 1], [2, 1, 0, 1, 2, 1, 0, 1, 2]]
    expected = torch.stack([(column[:, row] * weights).sum(1) / weights.sum() for row in rows], dim=1)
    torch.testing.assert_close(
        gaussian_blur(pixels, torch.tensor([2.0]), 9)[0, :, :, 0], expected, atol=1e-6, rtol=0
    )


def test_stains_are_unmixed_scaled_and_mixed():
    pixels = images().float() / 255
    still = jitter_stains(pixels, torch.ones(6, 3), torch.zeros(6, 3))
    torch.testing.assert_close(still, pixels.clamp(min=1 / 255), atol=1e-5, rtol=0)
    scales = 1 + 0.2 * torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    shifts = 0.1 * torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    density = -np.log(pixels.double().clamp(min=1 / 255).numpy()).transpose(0, 2, 3, 1)
    amounts = density @ np.linalg.inv(stains)
    amounts = amounts * scales.double().numpy()[:, None, None] + shifts.double().numpy()[:, None, None]
    expected = np.clip(np.exp(-amounts @ stains), 0, 1).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(jitter_stains(pixels, scales, shifts).numpy(), expected, atol=2e-6)


def test_more_haematoxylin_makes_nuclei_bluer_and_darker():
    nucleus = torch.tensor([90.0, 60, 140]).div(255)[None, :, None, None]
    stronger = jitter_stains(nucleus, torch.tensor([[1.3, 1, 1]]), torch.zeros(1, 3))
    change = (stronger - nucleus)[0, :, 0, 0]
    assert (change < 0).all()
    assert change[2] > change[0]


def test_parameters_have_the_papers_probabilities():
    parameters = draw_parameters(crop_keys(combine(0, np.arange(4000)), 10), PhotometricOptions())
    crop = np.repeat(np.arange(10), 4000)

    def share(values):
        return np.array([values[crop == c].mean() for c in range(10)])

    np.testing.assert_allclose(share(parameters.jitter), 0.8, atol=0.03)
    np.testing.assert_allclose(share(parameters.grayscale), 0.2, atol=0.03)
    blurred = share(parameters.blur)
    assert blurred[0] == 0
    np.testing.assert_allclose(blurred[1:], [0.9, *[0.5] * 8], atol=0.03)
    orders = np.unique(parameters.order, axis=0, return_counts=True)[1] / len(crop)
    assert len(orders) == 24
    np.testing.assert_allclose(orders, 1 / 24, atol=0.005)
    for values, low, high in [
        *((parameters.amounts[:, column], 0.8, 1.2) for column in range(3)),
        (parameters.amounts[:, 3], -0.1, 0.1),
        (parameters.sigma, 0.1, 2.0),
    ]:
        assert low <= values.min() < low + 0.001 * (high - low)
        assert high >= values.max() > high - 0.001 * (high - low)
        assert abs(values.mean() - (low + high) / 2) < 0.01 * (high - low)
    columns = [
        parameters.jitter,
        parameters.grayscale,
        parameters.blur,
        *parameters.amounts.T,
        parameters.sigma,
    ]
    assert np.abs(np.corrcoef(np.stack(columns)) - np.eye(8)).max() < 0.02
    assert (parameters.stain_scales == 1).all()
    assert (parameters.stain_shifts == 0).all()
    stained = draw_parameters(combine(0, np.arange(4000))[None], PhotometricOptions(hed_jitter=0.05))
    assert 0.95 <= stained.stain_scales.min() < 0.951
    assert 0.049 < stained.stain_shifts.max() <= 0.05


@pytest.mark.parametrize("hed_jitter", [0.0, 0.1])
def test_every_crop_goes_through_torchvisions_functions_by_its_own_parameters(hed_jitter):
    options = PhotometricOptions(hed_jitter=hed_jitter)
    keys = np.arange(12) * 7919
    patches = list(smooth_patches(12))
    crops = make_crops(patches, keys, CROPS)
    mean, std = torch.tensor([0.7, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.3, 0.1])[:, None, None]
    augment = DeviceAugmentation(
        "paper", mean=mean.flatten().tolist(), std=std.flatten().tolist(), options=options
    )
    parameters = draw_parameters(crop_keys(keys, 5), options)
    ours = augment(batch_of(*crops, keys))
    row = 0
    for views, results in zip(crops, ours, strict=True):
        assert results.dtype == torch.float32
        for crop, result in zip(views, results, strict=True):
            expected = crop.float() / 255
            if hed_jitter:
                scales, shifts = parameters.stain_scales[row, None], parameters.stain_shifts[row, None]
                expected = jitter_stains(expected[None], torch.tensor(scales), torch.tensor(shifts))[0]
            if parameters.jitter[row]:
                for number in parameters.order[row]:
                    expected = THEIRS[number](expected, float(parameters.amounts[row, number]))
            if parameters.grayscale[row]:
                expected = F.rgb_to_grayscale(expected, num_output_channels=3)
            if parameters.blur[row]:
                expected = F.gaussian_blur(expected, [9, 9], [float(parameters.sigma[row])] * 2)
            torch.testing.assert_close(result, (expected - mean) / std, atol=1e-4, rtol=0)
            row += 1
    assert row == 60


def test_pillows_path_gives_the_same_images_but_for_rounding():
    keys = np.arange(24) * 104_729
    patches = list(smooth_patches(24))
    options = dataclasses.replace(CROPS, vertical_flip=0.5, rotation=True)
    fast = DeviceAugmentation("paper", **IDENTITY)(batch_of(*make_crops(patches, keys, options), keys))
    crops = make_pil_crops([Image.fromarray(patches[0]), *patches[1:]], keys, options, PhotometricOptions())
    assert crops[0].dtype == torch.uint8
    slow = DeviceAugmentation("paper_pil", **IDENTITY)(batch_of(*crops, keys))
    for ours, theirs, start in ((fast[0], slow[0], crops[0]), (fast[1], slow[1], crops[1])):
        torch.testing.assert_close(theirs, start.float() / 255)
        difference = (ours - theirs).abs().flatten(1).mean(1) * 255
        assert difference.max() < 3
        assert difference.mean() < 1.5
        # the images themselves are far more apart
        assert (ours - theirs.roll(1, 0)).abs().mean() * 255 > 15


def test_a_crop_does_not_depend_on_its_batch():
    keys = np.array([5, 6, 7, 8])
    global_crops, local_crops = make_crops(list(smooth_patches(4)), keys, CROPS)
    augment = DeviceAugmentation("paper", **IDENTITY, options=PhotometricOptions(hed_jitter=0.1))
    together = augment(batch_of(global_crops, local_crops, keys))
    for i in range(4):
        alone = augment(batch_of(global_crops[i::4], local_crops[i::4], keys[i : i + 1]))
        assert torch.equal(alone[0], together[0][i::4])
        assert torch.equal(alone[1], together[1][i::4])


def test_augmenting_repeats_itself_and_leaves_input_and_random_numbers_alone():
    keys = np.array([1, 2])
    batch = batch_of(*make_crops(list(smooth_patches(2)), keys, CROPS), keys)
    before, state = batch.global_crops.clone(), torch.get_rng_state()
    augment = DeviceAugmentation("paper", **IDENTITY)
    first, second = augment(batch), augment(batch)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(batch.global_crops, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_local_crops():
    keys = np.array([1, 2])
    options = dataclasses.replace(CROPS, num_local=0)
    for make in (make_crops, lambda *arguments: make_pil_crops(*arguments, PhotometricOptions())):
        crops = make(list(smooth_patches(2)), keys, options)
        assert DeviceAugmentation("paper", **IDENTITY)(batch_of(*crops, keys))[1].shape == (0, 3, 14, 14)


def test_the_order_of_work_in_chunks_shows_nowhere(monkeypatch):
    keys = np.arange(9)
    batch = batch_of(*make_crops(list(smooth_patches(9)), keys, CROPS), keys)
    augment = DeviceAugmentation("paper", **IDENTITY)
    whole = augment(batch)
    monkeypatch.setattr("timm_mvhybrid.ssl.augmentation._CHUNK_PIXELS", 3 * 32 * 32 * 4)
    in_chunks = augment(batch)
    assert torch.equal(whole[0], in_chunks[0])
    assert torch.equal(whole[1], in_chunks[1])


def test_impossible_options_are_refused():
    for options, message in [
        ({"jitter_probability": 2}, "`jitter_probability` is 2; it must be between 0 and 1"),
        ({"blur_probabilities": (0, 0, -1)}, "`blur_probabilities` is -1; it must be between 0 and 1"),
        ({"hue": 0.6}, "`hue` is 0.6; it must be between 0 and 0.5"),
        ({"hed_jitter": -1}, "`hed_jitter` is -1; it must be"),
        ({"blur_sigma": (0, 1)}, "blur_sigma"),
        ({"blur_kernel_size": 8}, "`blur_kernel_size` is 8; it must be odd"),
    ]:
        with pytest.raises(PretrainError, match=message):
            PhotometricOptions(**options)
    with pytest.raises(PretrainError, match="`recipe` is 'other'; it must be one of paper, paper_pil"):
        DeviceAugmentation("other", **IDENTITY)
    with pytest.raises(PretrainError, match="`std` above 0"):
        DeviceAugmentation(mean=(0, 0, 0), std=(1, 0, 1))
