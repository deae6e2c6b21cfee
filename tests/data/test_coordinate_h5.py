import numpy as np
import pytest
from PIL import Image
from support.generated_patches import clam_attributes, trident_attributes, write_coordinates
from support.generated_slides import write_slide

from timm_mvhybrid.data import CoordinateH5Source, DataError

COORDS = [[512, 256], [256, 256]]


@pytest.fixture
def pixels(tmp_path):
    return write_slide(tmp_path / "slide.tif", um_per_px=0.25)


@pytest.mark.parametrize("on_file", [False, True])
def test_trident(tmp_path, pixels, on_file):
    write_coordinates(
        tmp_path / "slide_patches.h5", COORDS, attributes=trident_attributes(128), on_file=on_file
    )
    source = CoordinateH5Source(tmp_path / "slide_patches.h5")
    assert source.coords.tolist() == COORDS
    assert source.patch_size_px == 128
    assert source.resolution_um_per_px == pytest.approx(0.5, rel=1e-4)
    expected = Image.fromarray(pixels[256:512, 512:768]).resize((128, 128), Image.Resampling.BOX)
    np.testing.assert_array_equal(np.asarray(source[0]), np.asarray(expected))


def test_trident_by_magnifications_alone(tmp_path, pixels):
    attributes = trident_attributes(128)
    del attributes["patch_size_level0"]
    write_coordinates(tmp_path / "slide.h5", COORDS, attributes=attributes)
    assert CoordinateH5Source(tmp_path / "slide.h5").patch_size_level0 == 256


def test_clam(tmp_path, pixels):
    write_coordinates(tmp_path / "slide.h5", COORDS, attributes=clam_attributes(128, 1))
    source = CoordinateH5Source(tmp_path / "slide.h5")
    assert source.patch_size_level0 == 256
    expected = Image.fromarray(pixels[256:512, 256:512]).resize((128, 128), Image.Resampling.BOX)
    np.testing.assert_array_equal(np.asarray(source[1]), np.asarray(expected))


def test_clam_level_0_reads_native_pixels(tmp_path, pixels):
    write_coordinates(tmp_path / "slide.h5", COORDS, attributes=clam_attributes(128, 0))
    np.testing.assert_array_equal(
        np.asarray(CoordinateH5Source(tmp_path / "slide.h5")[0]), pixels[256:384, 512:640]
    )


def test_slides_without_resolution_are_fine(tmp_path):
    write_slide(tmp_path / "slide.tif", um_per_px=None)
    write_coordinates(tmp_path / "slide.h5", COORDS, attributes=clam_attributes(128, 1))
    assert CoordinateH5Source(tmp_path / "slide.h5").resolution_um_per_px is None
    given = CoordinateH5Source(tmp_path / "slide.h5", slide_resolution_um_per_px=0.25)
    assert given.resolution_um_per_px == 0.5


@pytest.mark.parametrize("um_per_px", [0.0274, (0.25, 0.5), 353.0])
def test_a_stated_resolution_that_cannot_be_true_is_told(tmp_path, um_per_px):
    write_slide(tmp_path / "slide.tif", um_per_px=um_per_px)
    write_coordinates(tmp_path / "slide.h5", COORDS, attributes=clam_attributes(128, 1))
    with pytest.warns(
        UserWarning, match=r"slide\.tif: the slide states .* states no resolution.*--slide-resolution"
    ) as told:
        assert CoordinateH5Source(tmp_path / "slide.h5").resolution_um_per_px is None
    assert len(told) == 1
    # warnings of this package are errors
    given = CoordinateH5Source(tmp_path / "slide.h5", slide_resolution_um_per_px=0.25)
    assert given.resolution_um_per_px == 0.5


def test_slide_by_option(tmp_path, pixels):
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "other.h5"
    write_coordinates(path, COORDS, attributes=clam_attributes(128, 1))
    with pytest.raises(
        DataError, match=r"other\.h5.*no slide named other or slide lies beside it.*`slide=FILE`"
    ):
        CoordinateH5Source(path)
    assert len(CoordinateH5Source(path, slide=tmp_path / "slide.tif")) == 2


def test_slide_by_attribute_name(tmp_path, pixels):
    write_coordinates(tmp_path / "other.h5", COORDS, attributes=clam_attributes(128, 1))
    assert CoordinateH5Source(tmp_path / "other.h5").slide.path == tmp_path / "slide.tif"


def test_two_slides_of_one_name(tmp_path, pixels):
    write_slide(tmp_path / "slide.tiff")
    write_coordinates(tmp_path / "slide.h5", COORDS, attributes=clam_attributes(128, 1))
    with pytest.raises(DataError, match=r"several slides fit \(slide\.tif, slide\.tiff\).*`slide=FILE`"):
        CoordinateH5Source(tmp_path / "slide.h5")


@pytest.mark.parametrize("outside", [[1024, 0], [0, 768], [-256, 0], [0, -256]])
def test_coordinates_outside_the_slide(tmp_path, pixels, outside):
    write_coordinates(tmp_path / "slide.h5", [*COORDS, outside], attributes=clam_attributes(128, 1))
    message = rf"slide\.h5: 1 of 3 coordinates lie outside .*slide\.tif \(1024 × 768 px\), first patch 2 at x={outside[0]}"
    with pytest.raises(DataError, match=message):
        CoordinateH5Source(tmp_path / "slide.h5")


@pytest.mark.parametrize(("x", "y"), [(960, 700), (-127, 300), (300, -127), (-1, -1), (-64, 700)])
def test_patches_may_hang_over_any_edge(tmp_path, x, y):
    pixels = write_slide(tmp_path / "slide.tif", tissue=(0, 0, 1024, 768))
    write_coordinates(tmp_path / "slide.h5", [[x, y]], attributes=clam_attributes(128, 0))
    patch = np.asarray(CoordinateH5Source(tmp_path / "slide.h5")[0])
    inside = np.zeros((128, 128), dtype=bool)
    inside[max(-y, 0) : 768 - y, max(-x, 0) : 1024 - x] = True
    expected = pixels[max(y, 0) : y + 128, max(x, 0) : x + 128].reshape(-1, 3)
    np.testing.assert_array_equal(patch[inside], expected)
    assert len(np.unique(patch[~inside])) == 1


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "no attribute 'patch_size'"),
        ({"patch_size": 128}, "neither CLAM's attribute 'patch_level' nor TRIDENT's 'patch_size_level0'"),
        (
            {"patch_size": 128, "patch_level": 7},
            r"'patch_level' is 7, but .*slide\.tif has the levels 0 to 2",
        ),
        ({"patch_size": "large", "patch_level": 0}, "'patch_size' is not a number: 'large'"),
        ({"patch_size": 128, "patch_level": "first"}, "'patch_level' is not a number: 'first'"),
        (
            {**trident_attributes(128), "patch_size_level0": 128},
            "'patch_size_level0' is 128, but patches of 128 px at 20 × on a slide of 40 × cover 256 px",
        ),
    ],
)
def test_missing_attributes(tmp_path, pixels, attributes, message):
    write_coordinates(tmp_path / "slide.h5", COORDS, attributes=attributes)
    with pytest.raises(DataError, match=rf"slide\.h5.*{message}"):
        CoordinateH5Source(tmp_path / "slide.h5")


def test_empty_coordinates(tmp_path, pixels):
    write_coordinates(tmp_path / "slide.h5", np.empty((0, 2), np.int64), attributes=clam_attributes(128, 0))
    with pytest.raises(DataError, match=r"slide\.h5: dataset 'coords' is empty"):
        CoordinateH5Source(tmp_path / "slide.h5")
