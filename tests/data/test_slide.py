import builtins
import pickle
import subprocess
import sys

import numpy as np
import openslide
import pytest
from PIL import Image
from support.generated_slides import REAL_SLIDE, write_slide

from timm_mvhybrid.data import DataError, PatchError, Slide, SlideSource, TilingOptions
from timm_mvhybrid.data.slide import _openslide_cache


def difference(patch, expected) -> float:
    return float(np.abs(np.asarray(patch).astype(int) - np.asarray(expected).astype(int)).mean())


@pytest.fixture
def without_openslide(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "openslide":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_real_slide_has_about_33_patches_of_native_pixels():
    source = SlideSource(REAL_SLIDE)
    assert abs(len(source) - 33) <= 2
    assert source.resolution_um_per_px == 0.499
    reference = openslide.OpenSlide(REAL_SLIDE)
    for index in (0, len(source) // 2, len(source) - 1):
        x, y = source.coords[index].tolist()
        assert x % 256 == 0
        assert y % 256 == 0
        expected = np.asarray(reference.read_region((x, y), 0, (256, 256)).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(source[index]), expected)
        assert (np.ptp(expected, axis=2) > 20).mean() > 0.4


def test_overlap_and_min_tissue_change_the_count():
    num_patches = len(SlideSource(REAL_SLIDE))
    assert len(SlideSource(REAL_SLIDE, TilingOptions(overlap_px=128))) > 3 * num_patches
    assert len(SlideSource(REAL_SLIDE, TilingOptions(min_tissue=0.9))) < num_patches
    assert len(SlideSource(REAL_SLIDE, TilingOptions(min_tissue=0.0))) == (2220 // 256) * (2967 // 256)


def test_only_patches_on_tissue(tmp_path):
    write_slide(tmp_path / "slide.tif")
    source = SlideSource(tmp_path / "slide.tif")
    assert source.coords.tolist() == [[256, 256], [512, 256]]
    assert source.coords.dtype == np.int64
    assert source.resolution_um_per_px == pytest.approx(0.5, rel=1e-4)


def test_within_one_percent_pixels_are_native(tmp_path):
    pixels = write_slide(tmp_path / "slide.tif", um_per_px=0.496)
    source = SlideSource(tmp_path / "slide.tif")
    assert source.resolution_um_per_px == pytest.approx(0.496, rel=1e-4)
    np.testing.assert_array_equal(np.asarray(source[0]), pixels[256:512, 256:512])


def test_a_finer_slide_is_read_from_the_fitting_level(tmp_path):
    pixels = write_slide(tmp_path / "slide.tif", um_per_px=0.25)
    source = SlideSource(tmp_path / "slide.tif", TilingOptions(patch_size_px=128))
    assert source.coords.tolist() == [[256, 256], [512, 256]]
    expected = Image.fromarray(pixels[256:512, 512:768]).resize((128, 128), Image.Resampling.BOX)
    np.testing.assert_array_equal(np.asarray(source[1]), np.asarray(expected))


@pytest.mark.parametrize("num_levels", [1, 3])
def test_resampling_between_levels(tmp_path, num_levels):
    # 0.3 → 0.75 µm/px: level 1 at 0.6, or level 0 where that is missing
    pixels = write_slide(tmp_path / "slide.tif", um_per_px=0.3, num_levels=num_levels)
    source = SlideSource(tmp_path / "slide.tif", TilingOptions(resolution_um_per_px=0.75, patch_size_px=64))
    assert source.patch_size_level0 == pytest.approx(160, rel=1e-4)
    index = source.coords.tolist().index([480, 320])
    patch = source[index]
    assert patch.size == (64, 64)
    expected = Image.fromarray(pixels[320:480, 480:640]).resize((64, 64), Image.Resampling.BICUBIC)
    assert difference(patch, expected) < 1


def test_a_coarser_slide_is_enlarged_with_a_warning(tmp_path):
    write_slide(tmp_path / "slide.tif", um_per_px=1.0)
    with pytest.warns(UserWarning, match=r"slide\.tif.* 1 µm/px, coarser than the requested 0\.5"):
        source = SlideSource(tmp_path / "slide.tif")
    assert source[0].size == (256, 256)
    assert source.coords[0].tolist() == [256, 256]
    assert source.coords[1].tolist() == [384, 256]


@pytest.mark.parametrize(
    ("um_per_px", "stated"),
    # 352.8 µm/px are the 72 dpi that image editors write, 0.00025 a length in mm taken for µm
    [
        (None, "no usable resolution"),
        (352.8, "352.8 µm/px, which no scanner has"),
        (0.0274, "0.0274 µm/px, finer than any light microscope"),
        (0.00025, "0.00025 µm/px, finer than any light microscope"),
        ((0.25, 0.5), "0.25 × 0.5 µm/px.*not be square"),
        ((0.5, 0.49), "0.5 × 0.49 µm/px.*not be square"),
    ],
)
def test_missing_or_impossible_resolution(tmp_path, um_per_px, stated):
    write_slide(tmp_path / "slide.tif", um_per_px=um_per_px)
    with pytest.raises(
        DataError,
        match=rf"slide\.tif: the slide states {stated}.*; give it with `slide_resolution_um_per_px`",
    ):
        SlideSource(tmp_path / "slide.tif")
    assert Slide(tmp_path / "slide.tif").resolution_um_per_px is None
    source = SlideSource(tmp_path / "slide.tif", TilingOptions(slide_resolution_um_per_px=0.5))
    assert len(source) == 2


@pytest.mark.parametrize("um_per_px", [(0.242534722, 0.242647058), (0.5, 0.4975), (0.06, 0.06), (10.0, 10.0)])
def test_scanners_differences_between_x_and_y_pass(tmp_path, um_per_px):
    write_slide(tmp_path / "slide.tif", um_per_px=um_per_px)
    expected = np.sqrt(um_per_px[0] * um_per_px[1])
    assert Slide(tmp_path / "slide.tif").resolution_um_per_px == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("library", ["openslide", "tiffslide"])
def test_an_open_slide_at_the_interpreters_end(library):
    """A slide that a module holds is collected when the modules imported after that one are gone."""
    code = (
        f"import sys, numpy\nif {library!r} == 'tiffslide': sys.modules['openslide'] = None\n"
        f"from timm_mvhybrid.data import Slide\nnumpy.slide = Slide({str(REAL_SLIDE)!r})\n"
        f"assert type(numpy.slide.handle).__module__.startswith({library!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""


def test_blank_slide(tmp_path):
    write_slide(tmp_path / "blank.tif", tissue=None)
    with pytest.raises(
        DataError, match=r"blank\.tif: no tissue found.*50% tissue.*threshold 12.*`min_tissue`"
    ):
        SlideSource(tmp_path / "blank.tif")


def test_slide_smaller_than_a_patch(tmp_path):
    write_slide(tmp_path / "small.tif", size=(200, 200), tissue=(0, 0, 200, 200), num_levels=1)
    with pytest.raises(DataError, match=r"small\.tif.*200 × 200 px.*`patch_size_px`"):
        SlideSource(tmp_path / "small.tif")


def test_beyond_the_edge_is_white(tmp_path):
    pixels = write_slide(tmp_path / "slide.tif", tissue=(0, 0, 1024, 768))
    patch = np.asarray(Slide(tmp_path / "slide.tif").read((960, -64), (128, 128), (128, 128)))
    np.testing.assert_array_equal(patch[64:, :64], pixels[:64, 960:])
    assert (patch[:64] == 255).all()
    assert (patch[:, 64:] == 255).all()


def test_thumbnail_in_blocks_equals_the_whole(tmp_path, monkeypatch):
    pixels = write_slide(tmp_path / "slide.tif", num_levels=1)
    whole = Slide(tmp_path / "slide.tif").thumbnail(8)
    assert whole.shape == (96, 128, 3)
    assert difference(whole, Image.fromarray(pixels).resize((128, 96), Image.Resampling.BOX)) < 2
    monkeypatch.setattr("timm_mvhybrid.data.slide._THUMBNAIL_BLOCK_PX", 256)
    assert difference(Slide(tmp_path / "slide.tif").thumbnail(8), whole) < 0.5


def test_pickled_slides_read_the_same():
    source = SlideSource(REAL_SLIDE)
    before = np.asarray(source[5])
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(source))[5]), before)


def test_tiffslide_takes_over_where_openslide_is_absent(without_openslide):
    source = SlideSource(REAL_SLIDE)
    assert type(source.slide.handle).__module__.startswith("tiffslide")
    assert abs(len(source) - 33) <= 2
    x, y = source.coords[0].tolist()
    expected = openslide.OpenSlide(REAL_SLIDE).read_region((x, y), 0, (256, 256)).convert("RGB")
    # the two libraries' JPEG decoders may differ by rounding
    assert difference(source[0], expected) < 2


def test_tiffslide_takes_over_where_openslide_refuses(tmp_path):
    # a TIFF in strips is no slide to OpenSlide
    pixels = write_slide(tmp_path / "slide.tif")
    Image.fromarray(pixels).save(tmp_path / "strips.tif")
    source = SlideSource(tmp_path / "strips.tif", TilingOptions(slide_resolution_um_per_px=0.5))
    assert type(source.slide.handle).__module__.startswith("tiffslide")
    np.testing.assert_array_equal(np.asarray(source[0]), pixels[256:512, 256:512])


def test_unreadable_region_names_the_patch_and_the_next_read_works(tmp_path, monkeypatch):
    write_slide(tmp_path / "slide.tif")
    source = SlideSource(tmp_path / "slide.tif")

    class Damaged:
        def read_region(self, *args):
            raise openslide.OpenSlideError("TIFFRGBAImageGet failed")

        def close(self):
            pass

    source[0]
    monkeypatch.setattr(source.slide, "_handle", Damaged())
    with pytest.raises(PatchError, match=r"slide\.tif: unreadable region at x=512, y=256 \(TIFFRGBA"):
        source[1]
    assert source[1].size == (256, 256)


@pytest.mark.filterwarnings("ignore:.*its patches are enlarged")
@pytest.mark.parametrize("options", [{"slide_resolution_um_per_px": 1e9}, {"resolution_um_per_px": 1e-9}])
def test_patches_below_one_pixel_are_refused_before_a_grid_is_laid(tmp_path, options):
    write_slide(tmp_path / "slide.tif")
    with pytest.raises(
        DataError, match=r"slide\.tif: a patch of 64 px .* smaller than one pixel .*`resolution_um_per_px`"
    ):
        SlideSource(tmp_path / "slide.tif", TilingOptions(patch_size_px=64, **options))


@pytest.mark.parametrize("without", [False, True])
def test_a_region_is_the_same_however_many_parts_it_is_read_in(tmp_path, monkeypatch, request, without):
    if without:
        request.getfixturevalue("without_openslide")
    write_slide(tmp_path / "a.tif")
    regions = [((100.0, 50.0), (800.0, 600.0), (800, 600)), ((-30.5, 3.25), (900.0, 800.0), (450, 400))]
    whole = [np.asarray(Slide(tmp_path / "a.tif").read(*region)) for region in regions]
    monkeypatch.setattr("timm_mvhybrid.data.slide._STRIP_PX", 7000)
    for region, expected in zip(regions, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(Slide(tmp_path / "a.tif").read(*region)), expected)


def test_slides_of_a_process_share_one_cache(monkeypatch):
    made, given = [], []
    cache = openslide.OpenSlideCache
    monkeypatch.setattr(openslide, "OpenSlideCache", lambda size: made.append(size) or cache(size))
    set_cache = openslide.OpenSlide.set_cache
    monkeypatch.setattr(
        openslide.OpenSlide, "set_cache", lambda slide, one: given.append(one) or set_cache(slide, one)
    )
    _openslide_cache.cache_clear()
    slides = [Slide(REAL_SLIDE) for _ in range(3)]
    assert made == [16 << 20]
    assert len(given) == 3
    assert len({id(one) for one in given}) == 1
    del slides
