"""`Slide.read_level`: whole pixels of a level, the same through OpenSlide and tiffslide."""

import numpy as np
import openslide
import pytest
from support.generated_slides import wave, write_odd_pyramid

from timm_mvhybrid.data import Slide

CORNERS = [(0, 0), (256, 256), (1001, 701), (-60, 101), (-61, -3), (1190, 890), (2400, 10)]


def _missing(path):
    raise ImportError


@pytest.fixture(params=["openslide", "tiffslide"])
def library(request, monkeypatch):
    if request.param == "tiffslide":
        monkeypatch.setattr("timm_mvhybrid.data.slide._openslide", _missing)
    return request.param


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("padding", [(255, 255, 255), (0, 0, 0)])
def test_level_is_read_as_openslide_gives_it(tmp_path, library, corner, level, padding):
    write_odd_pyramid(tmp_path / "odd.svs")
    expected = openslide.OpenSlide(tmp_path / "odd.svs").read_region(corner, level, (120, 110))
    opaque = np.asarray(expected)[..., 3]
    patch = np.asarray(Slide(tmp_path / "odd.svs").read_level(corner, level, (120, 110), padding=padding))
    difference = np.abs(patch.astype(int) - np.asarray(expected.convert("RGB")))
    # OpenSlide weights with 7 bits: of 255 grey levels the weight's rounding moves 1 an axis, and the result's 1
    assert difference[opaque == 255].max(initial=0) <= (0 if library == "openslide" else 3)
    if library == "openslide":
        assert difference[opaque > 0].max(initial=0) == 0
    assert (patch[opaque == 0] == padding).all()


@pytest.mark.parametrize("reduction", [2, 4])
def test_read_is_the_same_through_both_libraries(tmp_path, monkeypatch, reduction):
    """Whichever library opens a pyramid of odd level sizes, also where the level's pixels lie between the corner's."""
    write_odd_pyramid(tmp_path / "odd.svs", reduction=reduction)
    first = Slide(tmp_path / "odd.svs")
    assert first.level_downsamples[1] != reduction
    monkeypatch.setattr("timm_mvhybrid.data.slide._openslide", _missing)
    second = Slide(tmp_path / "odd.svs")
    assert type(first.handle).__module__ != type(second.handle).__module__
    corners = [*np.random.default_rng(1).integers(-80, 1000, (40, 2)).tolist(), [256, 256], [0, 0]]
    for corner in corners:
        size = (64 * reduction, 60 * reduction)
        patches = [np.asarray(slide.read(corner, size, (64, 60))).astype(float) for slide in (first, second)]
        difference = np.abs(patches[0] - patches[1])
        # noise over all 255 levels is the worst case: see above for the 3; the mean is what tissue can show
        assert difference.max() <= 4, corner
        assert difference.mean() < 0.5, corner


def test_read_interpolates_at_the_exact_place(tmp_path, library):
    """A wave stays where it is, on a level of odd size."""
    write_odd_pyramid(tmp_path / "odd.svs", smooth=True)
    slide = Slide(tmp_path / "odd.svs")
    for corner in [(256, 256), (301, 211), (-101, 400), (399, -33)]:
        patch = np.asarray(slide.read(corner, (256, 256), (128, 128))).astype(float)[40:100, 60:100, 0]
        x = corner[0] + 2 * np.arange(60, 100) + 1
        # three roundings to whole grey levels, 0.2 for the wave's curvature between two pixels of the level, and 0.3 for
        # bicubic weights; a third of a level-0 pixel more shows
        assert np.abs(patch - wave(x)).max() <= 2


def test_the_levels_of_ome_tiff_are_read(tmp_path):
    """OME-TIFF keeps smaller levels in SubIFDs, of which OpenSlide knows nothing."""
    tifffile = pytest.importorskip("tifffile")
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    # not what shrinking would give, so that it shows which is read
    smaller = 255 - image[::2, ::2]
    with tifffile.TiffWriter(tmp_path / "slide.ome.tif", ome=True) as writer:
        kind = {"tile": (128, 128), "photometric": "rgb"}
        size = {
            f"PhysicalSize{axis}{unit}": value
            for axis in "XY"
            for unit, value in (("", 0.25), ("Unit", "µm"))
        }
        writer.write(image, subifds=1, metadata={"axes": "YXS", **size}, **kind)
        writer.write(smaller, subfiletype=1, **kind)
    slide = Slide(tmp_path / "slide.ome.tif")
    assert slide.level_dimensions == [(800, 600), (400, 300)]
    assert slide.resolution_um_per_px == pytest.approx(0.25)
    assert np.array_equal(np.asarray(slide.read((100, 60), (200, 160), (200, 160))), image[60:220, 100:300])
    assert np.array_equal(np.asarray(slide.read((100, 60), (200, 160), (100, 80))), smaller[30:110, 50:150])
    # coordinate files of others name OpenSlide's levels
    theirs = Slide(tmp_path / "slide.ome.tif", as_openslide=True)
    assert theirs.level_dimensions == [(800, 600)]
    shrunk = np.asarray(theirs.read((100, 60), (200, 160), (100, 80)))
    assert not np.array_equal(shrunk, smaller[30:110, 50:150])
