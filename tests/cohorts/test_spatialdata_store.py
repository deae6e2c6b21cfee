import math
import shutil

import h5py
import numpy as np
import pytest
import tifffile
from support.generated_slides import write_slide
from support.limited_disks import refusing
from support.spatialdata_stores import COUNTS, HEIGHT, PLACES, SHRINK, TURN, WIDTH, write_store

from timm_mvhybrid.cohorts.image_element import write_image_element
from timm_mvhybrid.cohorts.prepare import prepare_sample
from timm_mvhybrid.cohorts.spatialdata_store import SpatialDataStore
from timm_mvhybrid.cohorts.spot_sample import PatchOptions
from timm_mvhybrid.data.plain_image import open_slide
from timm_mvhybrid.runtime.errors import DataError, OutputError, ParameterError

pytest.importorskip("spatialdata")

PATCHES = PatchOptions(patch_size_px=32, resolution_um_per_px=0.5)


def slide_of(tmp_path, **options):
    write_image_element(tmp_path / "s.zarr", tmp_path / "he.tif", **options)
    return tmp_path / "he.tif"


@pytest.mark.parametrize("shapes", ["circles", "polygons", "labels"])
def test_places_through_the_transformations(tmp_path, shapes):
    write_store(tmp_path / "s.zarr", shapes=shapes)
    slide = slide_of(tmp_path, um_per_px=0.5)
    store = SpatialDataStore(folder=tmp_path / "s.zarr", slide=slide, image="he")
    sample = store.read("S", PATCHES)
    np.testing.assert_allclose(sample.spatial, PLACES, rtol=0, atol=1e-6)
    assert sample.barcodes == tuple(f"spots-{number}" for number in range(5))
    assert sample.counts.toarray().tolist() == COUNTS.tolist()
    assert sample.spot_shape == ("circle" if shapes == "circles" else "square")
    # lengths shrink by the root of the area
    of_image = SHRINK / math.sqrt(abs(np.linalg.det(TURN)))
    size = {"circles": 12 * of_image * 0.5, "polygons": 8 * of_image * 0.5, "labels": None}[shapes]
    assert sample.spot_size_um == (None if size is None else pytest.approx(size))
    assert sample.um_per_px is None


def test_places_in_the_coordinate_system_where_no_image_is_named(tmp_path):
    write_store(tmp_path / "s.zarr")
    store = SpatialDataStore(folder=tmp_path / "s.zarr", slide=slide_of(tmp_path))
    wanted = (TURN @ np.c_[PLACES, np.ones(5)].T)[:2].T
    np.testing.assert_allclose(store.read("S", PATCHES).spatial, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_a_store_becomes_a_task_with_the_right_tissue(tmp_path, scale_factors):
    write_store(tmp_path / "s.zarr", scale_factors=scale_factors)
    slide = slide_of(tmp_path, um_per_px=0.5)
    store = SpatialDataStore(folder=tmp_path / "s.zarr", slide=slide, image="he", pitch_um=100)
    prepared = prepare_sample(store, slide, tmp_path / "T", sample_id="S", study="A", patches=PATCHES)
    assert (prepared.num_spots, prepared.um_per_px) == (5, pytest.approx(0.5))
    with h5py.File(tmp_path / "T" / "patches" / "S.h5") as file:
        darkness = 255 - file["img"][:].mean(axis=(1, 2, 3))
        barcodes = [name.decode() for name in file["barcode"][:, 0]]
    assert barcodes[int(darkness.argmax())] == "spots-2"
    assert (darkness > 1).sum() == 1
    assert (
        prepare_sample(store, slide, tmp_path / "T", sample_id="S", study="A", patches=PATCHES).status
        == "kept"
    )


def test_size_of_a_px_from_the_pitch(tmp_path):
    write_store(tmp_path / "s.zarr")
    slide = slide_of(tmp_path, um_per_px=0.5)
    options = {"folder": tmp_path / "s.zarr", "slide": slide, "image": "he"}
    assert SpatialDataStore(**options, pitch_um=110).read("S", PATCHES).um_per_px == pytest.approx(0.55)
    with pytest.raises(DataError, match=r"states 0\.5 µm/px.*a px is 0\.55 µm, 10% apart"):
        prepare_sample(
            SpatialDataStore(**options, pitch_um=110),
            slide,
            tmp_path / "T",
            sample_id="S",
            study="A",
            patches=PATCHES,
        )
    places = np.random.default_rng(0).uniform((0, 0), (WIDTH, HEIGHT), (5, 2))
    write_store(tmp_path / "cells.zarr", places=places)
    with pytest.raises(
        DataError, match=r"table: the nearest neighbour .* so there is no one distance; leave `pitch_um`"
    ):
        SpatialDataStore(**{**options, "folder": tmp_path / "cells.zarr"}, pitch_um=100).read("S", PATCHES)
    with pytest.raises(ParameterError, match="`pitch_um` must be above 0, not -1"):
        SpatialDataStore(**options, pitch_um=-1)


def test_the_image_is_written_as_it_is(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1100, 700), dtype=np.uint8)
    write_store(tmp_path / "s.zarr", image=pixels, channels=["b", "g", "r"], scale_factors=[2])
    monkeypatch.setattr("timm_mvhybrid.cohorts.image_element._ROW_TILES", 1)
    slide = slide_of(tmp_path, um_per_px=0.3)
    wanted = np.moveaxis(pixels[::-1], 0, 2)
    np.testing.assert_array_equal(tifffile.imread(slide), wanted)
    opened = open_slide(slide)
    assert opened.dimensions == (700, 1100)
    assert opened.resolution_um_per_px == pytest.approx(0.3, rel=1e-6)
    region = np.asarray(opened.read((500, 1000), (64, 64), (64, 64)))
    np.testing.assert_array_equal(region, wanted[1000:1064, 500:564])
    before = slide.stat().st_mtime_ns
    slide_of(tmp_path, um_per_px=0.3)
    assert slide.stat().st_mtime_ns == before
    with pytest.raises(
        DataError, match=r"he\.tif: exists already, and is not image 'he' of .* at `slide_res.*=0\.4`"
    ):
        slide_of(tmp_path, um_per_px=0.4)
    slide_of(tmp_path, um_per_px=0.4, overwrite=True)
    assert open_slide(slide).resolution_um_per_px == pytest.approx(0.4, rel=1e-6)
    slide.write_bytes(b"no")
    with pytest.raises(DataError, match="exists already"):
        slide_of(tmp_path, um_per_px=0.4)
    assert slide.read_bytes() == b"no"


def test_an_image_that_the_disk_does_not_take_leaves_nothing(tmp_path, monkeypatch):
    write_store(tmp_path / "s.zarr")
    monkeypatch.setattr("timm_mvhybrid.cohorts.image_element.OutputFile", refusing(2000))
    with pytest.raises(OutputError, match=r"he\.tif: cannot be written \(No space left on device"):
        slide_of(tmp_path)
    assert not list(tmp_path.glob("*he.tif*.tmp")) + list(tmp_path.glob("he.tif"))


def test_images_without_names_of_colours(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 50), dtype=np.uint8)
    write_store(tmp_path / "s.zarr", image=pixels)
    np.testing.assert_array_equal(tifffile.imread(slide_of(tmp_path)), np.moveaxis(pixels[:3], 0, 2))


def test_images_that_are_not_stained(tmp_path):
    write_store(tmp_path / "a.zarr", image=np.zeros((3, 40, 50), np.uint16))
    write_store(tmp_path / "b.zarr", image=np.zeros((1, 40, 50), np.uint8), channels=["DAPI"])
    write_store(tmp_path / "c.zarr", image=np.zeros((3, 40, 50), np.uint8), channels=["DAPI", "18S", "CD4"])
    for name, problem in (
        ("a", "3 channels of uint16; give an image of red, green and blue"),
        ("b", "1 channels of uint8"),
        ("c", "its channels are dapi, 18s, cd4, not red, green and blue"),
    ):
        with pytest.raises(DataError, match=problem):
            write_image_element(tmp_path / f"{name}.zarr", tmp_path / "x.tif")
    assert not (tmp_path / "x.tif").exists()
    with pytest.raises(DataError, match=r"no image 'y' in its folder images; it has he"):
        write_image_element(tmp_path / "a.zarr", tmp_path / "x.tif", "y")


def test_several_regions_are_several_samples(tmp_path):
    write_store(tmp_path / "s.zarr", regions=("one", "two"))
    options = {"folder": tmp_path / "s.zarr", "slide": slide_of(tmp_path), "image": "he"}
    with pytest.raises(
        DataError, match=r"annotates one, two; each is a sample of its own, choose one by `region`"
    ):
        SpatialDataStore(**options).read("S", PATCHES)
    sample = SpatialDataStore(**options, region="two").read("S", PATCHES)
    assert sample.barcodes[0] == "two-0"
    assert sample.notes["num_other_regions"] == 5
    with pytest.raises(DataError, match=r"does not annotate 'three', but one, two"):
        SpatialDataStore(**options, region="three").read("S", PATCHES)


def test_what_cannot_be_used(tmp_path):
    write_store(tmp_path / "s.zarr", image_system="other")
    slide = slide_of(tmp_path)
    options = {"folder": tmp_path / "s.zarr", "slide": slide}
    with pytest.raises(DataError, match=r"spots and he have no coordinate system in common; choose"):
        SpatialDataStore(**options, image="he").read("S", PATCHES)
    with pytest.raises(DataError, match=r"spots have the coordinate system global in common, not 'other'"):
        SpatialDataStore(**options, coordinate_system="other").read("S", PATCHES)
    with pytest.raises(DataError, match=r"no table 'x' in its folder tables; it has table"):
        SpatialDataStore(**options, table="x").files  # noqa: B018
    with pytest.raises(DataError, match=r"no image 'x' in its folder images; it has he"):
        SpatialDataStore(**options, image="x").files  # noqa: B018
    with pytest.raises(DataError, match=r"no such folder, and give the folder of a SpatialData store"):
        SpatialDataStore(folder=tmp_path / "no.zarr", slide=slide).files  # noqa: B018
    with pytest.raises(DataError, match=r"is a file; unpack it"):
        SpatialDataStore(folder=slide, slide=slide).files  # noqa: B018
    (tmp_path / "s.zarr" / "shapes" / "spots" / "shapes.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"s\.zarr: cannot be read as a SpatialData store"):
        SpatialDataStore(**options).read("S", PATCHES)


def test_counts_of_a_layer(tmp_path):
    write_store(tmp_path / "s.zarr", layer="counts")
    options = {"folder": tmp_path / "s.zarr", "slide": slide_of(tmp_path), "image": "he"}
    sample = SpatialDataStore(**options, counts_layer="counts").read("S", PATCHES)
    assert sample.counts.toarray().tolist() == COUNTS.tolist()
    assert any(
        "layers/counts" in file.as_posix()
        for file in SpatialDataStore(**options, counts_layer="counts").files
    )
    with pytest.raises(
        DataError, match=r"counts are in layer 'counts': take them by `counts_layer='counts'`"
    ):
        SpatialDataStore(**options).read("S", PATCHES)


def test_a_region_that_is_not_there(tmp_path):
    write_store(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / "shapes")
    with pytest.raises(DataError, match=r"s\.zarr: (has no element 'spots'; it has he|cannot be read)"):
        SpatialDataStore(folder=tmp_path / "s.zarr", slide=slide_of(tmp_path)).read("S", PATCHES)


def test_tables_and_slides_that_do_not_belong(tmp_path):
    write_store(tmp_path / "a.zarr", annotates=False)
    write_slide(tmp_path / "small.tif", size=(300, 200), tissue=None, num_levels=1)
    options = {"slide": tmp_path / "small.tif", "image": "he"}
    with pytest.raises(DataError, match=r"table: annotates no shapes"):
        SpatialDataStore(folder=tmp_path / "a.zarr", **options).read("S", PATCHES)
    write_store(tmp_path / "b.zarr")
    with pytest.raises(DataError, match=r"small\.tif: has 300 × 200 px, and image 'he' of .* 620 × 540"):
        SpatialDataStore(folder=tmp_path / "b.zarr", **options).read("S", PATCHES)
    write_store(tmp_path / "c.zarr", counts=COUNTS / 2)
    write_image_element(tmp_path / "c.zarr", tmp_path / "he.tif")
    options["slide"] = tmp_path / "he.tif"
    with pytest.raises(DataError, match=r"table: barcode 'spots-0', gene 'EPCAM' has the value 0\.5 in X"):
        SpatialDataStore(folder=tmp_path / "c.zarr", **options).read("S", PATCHES)
