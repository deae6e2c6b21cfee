"""Slides of OME-Zarr: an image, a SpatialData store with one; what is no picture of tissue is refused."""

import numpy as np
import pytest

from timm_mvhybrid.data import DataError, Slide, SlideSource, TilingOptions, list_slides, open_source

zarr = pytest.importorskip("zarr", reason="zarr is not installed")

IMAGE = np.random.default_rng(0).integers(0, 256, (3, 200, 320), dtype=np.uint8)


def write_image(group, levels, *, axes="cyx", unit="micrometer", scale=0.5, nested=False):
    """Writes a multiscale image of OME-Zarr into a group, arrays in the order of the axes."""
    for number, level in enumerate(levels):
        group[str(number)] = level
    kinds = {"c": "channel", "t": "time"}
    described = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in described:
        if axis["type"] == "space" and unit:
            axis["unit"] = unit
    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {"type": "scale", "scale": [scale * 2**number if axis in "zyx" else 1.0 for axis in axes]}
            ],
        }
        for number in range(len(levels))
    ]
    found = {"multiscales": [{"axes": described, "datasets": datasets, "name": "image"}]}
    group.attrs.update({"ome": found} if nested else found)


def rgb(values):
    """(c, y, x) as a picture."""
    return values.transpose(1, 2, 0)


@pytest.mark.parametrize("nested", [False, True])
def test_an_image_with_levels(tmp_path, nested):
    path = tmp_path / "slide.zarr"
    write_image(zarr.open_group(str(path), mode="w"), [IMAGE, IMAGE[:, ::2, ::2]], nested=nested)
    slide = Slide(path)
    assert slide.level_dimensions == [(320, 200), (160, 100)]
    assert slide.resolution_um_per_px == pytest.approx(0.5)
    assert np.array_equal(np.asarray(slide.read((40, 20), (64, 48), (64, 48))), rgb(IMAGE[:, 20:68, 40:104]))
    half = np.asarray(slide.read((40, 20), (64, 48), (32, 24)))
    assert np.array_equal(half, rgb(IMAGE[:, ::2, ::2][:, 10:34, 20:52]))
    beyond = np.asarray(slide.read((300, 190), (64, 64), (64, 64)))
    assert (beyond[10:] == 255).all()
    assert np.array_equal(beyond[:10, :20], rgb(IMAGE[:, 190:, 300:]))


@pytest.mark.parametrize(
    ("axes", "stored"),
    [
        ("tczyx", IMAGE[None, :, None]),
        ("yxc", IMAGE.transpose(1, 2, 0)),
        ("cyx", np.concatenate([IMAGE, np.full((1, 200, 320), 255, np.uint8)])),
    ],
)
def test_axes_in_any_order(tmp_path, axes, stored):
    path = tmp_path / "slide.zarr"
    write_image(zarr.open_group(str(path), mode="w"), [stored], axes=axes)
    assert np.array_equal(np.asarray(Slide(path).read((0, 0), (320, 200), (320, 200))), rgb(IMAGE))


def test_what_is_transparent_is_white(tmp_path):
    opacity = np.zeros((1, 200, 320), np.uint8)
    opacity[:, :, :100] = 255
    path = tmp_path / "slide.zarr"
    write_image(zarr.open_group(str(path), mode="w"), [np.concatenate([IMAGE, opacity])])
    read = np.asarray(Slide(path).read((0, 0), (320, 200), (320, 200)))
    assert np.array_equal(read[:, :100], rgb(IMAGE)[:, :100])
    assert (read[:, 100:] == 255).all()


@pytest.mark.parametrize(
    ("unit", "scale", "expected"), [("nanometer", 250.0, 0.25), ("millimeter", 5e-4, 0.5)]
)
def test_units_are_those_of_ome(tmp_path, unit, scale, expected):
    path = tmp_path / "slide.zarr"
    write_image(zarr.open_group(str(path), mode="w"), [IMAGE], unit=unit, scale=scale)
    assert Slide(path).resolution_um_per_px == pytest.approx(expected)


@pytest.mark.parametrize("unit", [None, "unit"])
def test_without_a_unit_there_is_no_resolution(tmp_path, unit):
    path = tmp_path / "slide.zarr"
    write_image(zarr.open_group(str(path), mode="w"), [IMAGE], unit=unit, scale=1.0)
    with pytest.raises(
        DataError, match="states no usable resolution; give it with `slide_resolution_um_per_px`"
    ):
        open_source(path)
    tiling = TilingOptions(patch_size_px=100, slide_resolution_um_per_px=0.5, min_tissue=0)
    assert isinstance(open_source(path, tiling=tiling), SlideSource)
    assert len(open_source(path, tiling=tiling)) == 6


def test_a_spatialdata_store_gives_its_picture_of_tissue(tmp_path):
    path = tmp_path / "sample.zarr"
    store = zarr.open_group(str(path), mode="w")
    images = store.create_group("images")
    write_image(images.create_group("stain"), [IMAGE])
    write_image(images.create_group("dapi"), [np.zeros((1, 200, 320), np.uint16)])
    assert np.array_equal(np.asarray(Slide(path).read((0, 0), (320, 200), (320, 200))), rgb(IMAGE))
    (listed,) = list_slides([tmp_path])
    assert (listed.slide_id, listed.path) == ("sample", path)
    write_image(images.create_group("morphology"), [IMAGE[:, ::-1]])
    with pytest.raises(
        DataError,
        match=r"^\S*sample\.zarr: holds the images dapi, morphology, stain, of which 2 may be H&E; name one, such as",
    ):
        Slide(path)
    named = Slide(path / "images" / "morphology")
    assert np.array_equal(np.asarray(named.read((0, 0), (320, 200), (320, 200))), rgb(IMAGE[:, ::-1]))


@pytest.mark.parametrize(
    ("axes", "stored", "message"),
    [
        ("cyx", IMAGE.astype(np.uint16), "its values are uint16, not 8 bits"),
        ("cyx", np.zeros((7, 200, 320), np.uint8), "it has 7 channels"),
        ("zcyx", np.stack([IMAGE] * 3), "it has 3 planes along z"),
    ],
)
def test_what_is_no_picture_of_tissue_is_refused(tmp_path, axes, stored, message):
    path = tmp_path / "slide.zarr"
    write_image(zarr.open_group(str(path), mode="w"), [stored], axes=axes)
    with pytest.raises(DataError, match=f"slide.zarr: {message}; give an H&E image of 8 bits in RGB"):
        Slide(path)


def test_a_store_without_an_image_is_named(tmp_path):
    path = tmp_path / "table.zarr"
    zarr.open_group(str(path), mode="w").create_group("tables")
    with pytest.raises(DataError, match=r"^\S*table\.zarr: holds no image; name one"):
        Slide(path)
