import numpy as np
import pytest
from PIL import Image

from timm_mvhybrid.data.fitting import fit_image
from timm_mvhybrid.embed import patch_reading
from timm_mvhybrid.pretrain import probe_targets


def test_evaluation_and_the_online_probe_fit_alike():
    assert patch_reading.fit_image is probe_targets.fit_image is fit_image


@pytest.mark.parametrize("shape", [(24, 24), (48, 40), (16, 30)])
def test_arrays_and_images_are_fitted_as_pillow_does(shape):
    patch = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(patch)
    scale = 32 / min(shape)
    covering = round(shape[1] * scale), round(shape[0] * scale)
    left, top = (covering[0] - 32) // 2, (covering[1] - 32) // 2
    expected = image.resize(covering, Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
    for given in (patch, image):
        np.testing.assert_array_equal(fit_image(given, (32, 32)), np.asarray(expected))


def test_a_patch_that_fits_is_not_touched():
    patch = np.zeros((32, 48, 3), np.uint8)
    assert fit_image(patch, (32, 48)) is patch
