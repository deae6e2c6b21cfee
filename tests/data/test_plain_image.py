"""JPEG, PNG and other images behind the interface of a slide."""

import numpy as np
import pytest
from PIL import Image
from support.generated_slides import write_slide

from timm_mvhybrid.data import DataError, Slide, open_slide
from timm_mvhybrid.data.plain_image import PlainImage


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8)


def test_an_image_is_read_as_a_slide_of_the_same_pixels(tmp_path, pixels):
    write_slide(tmp_path / "tiled.tif", size=(110, 70), tissue=None, num_levels=1)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    slide = open_slide(tmp_path / "plain.png")
    assert slide.dimensions == (110, 70)
    assert slide.resolution_um_per_px is None
    assert slide.resolution_problem == "the slide states no usable resolution"
    np.testing.assert_array_equal(np.asarray(slide.read((3, 5), (20, 10), (20, 10))), pixels[5:15, 3:23])
    half = Image.fromarray(pixels).resize((10, 5), Image.Resampling.BICUBIC, box=(40, 20, 60, 30))
    np.testing.assert_allclose(np.asarray(slide.read((40, 20), (20, 10), (10, 5))), np.asarray(half), atol=40)
    assert isinstance(open_slide(tmp_path / "tiled.tif"), Slide)
    assert not isinstance(open_slide(tmp_path / "tiled.tif"), PlainImage)
    assert open_slide(tmp_path / "plain.png", 0.25).resolution_um_per_px == 0.25


@pytest.mark.parametrize("corner", [(-4, -3), (100, 64), (-200, 0), (0, 500)])
def test_what_lies_beyond_an_image_is_white(tmp_path, pixels, corner):
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    region = np.asarray(open_slide(tmp_path / "plain.png").read(corner, (16, 12), (16, 12)))
    padded = np.pad(pixels, ((600, 600), (600, 600), (0, 0)), constant_values=255)
    left, top = corner[0] + 600, corner[1] + 600
    np.testing.assert_array_equal(region, padded[top : top + 12, left : left + 16])


def test_a_thumbnail_and_a_reopened_image(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    slide = open_slide(tmp_path / "plain.png")
    before = slide.thumbnail(2.0)
    assert before.shape == (35, 55, 3)
    slide.close()
    np.testing.assert_array_equal(slide.thumbnail(2.0), before)


def test_images_larger_than_pillow_expects(tmp_path, pixels, monkeypatch):
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert open_slide(tmp_path / "plain.png").dimensions == (110, 70)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_files_that_are_neither(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        open_slide(tmp_path / "a.png")
    (tmp_path / "a.svs").write_bytes(b"no slide")
    with pytest.raises(DataError, match=r"a\.svs: cannot be opened as a slide"):
        open_slide(tmp_path / "a.svs")
    with pytest.raises(DataError, match=r"none\.png: No such file"):
        open_slide(tmp_path / "none.png")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits per channel"):
        open_slide(tmp_path / "deep.png")
