import json

import h5py
import numpy as np
import pytest
from PIL import Image
from support.generated_slides import slide_pixels, write_slide

from timm_mvhybrid.data import (
    DataError,
    PatchError,
    PatchH5Source,
    SlideSource,
    TilingOptions,
    open_samples,
    open_source,
    tile_slides,
)

OPTIONS = TilingOptions(patch_size_px=64, resolution_um_per_px=1.0)


@pytest.fixture
def slides(tmp_path):
    paths = [tmp_path / "slides" / f"{name}.tif" for name in "ab"]
    paths[0].parent.mkdir()
    write_slide(paths[0])
    write_slide(paths[1], tissue=(0, 0, 512, 256))
    return paths


def test_the_store_holds_the_patches_of_the_slides(slides, tmp_path):
    summary = tile_slides(slides, tmp_path / "store", OPTIONS)
    assert [result.status for result in summary.slides] == ["tiled", "tiled"]
    assert summary.failed == ()
    assert summary.num_patches == 16
    for result in summary.slides:
        expected, source = SlideSource(result.slide, OPTIONS), open_source(result.output)
        assert type(source) is PatchH5Source
        assert len(source) == len(expected) == result.num_patches
        np.testing.assert_array_equal(source.coords, expected.coords)
        assert (source.patch_size_px, source.resolution_um_per_px) == (64, 1.0)
        for index in range(len(source)):
            np.testing.assert_array_equal(source[index], np.asarray(expected[index]))


def test_the_layout_is_hests_with_one_chunk_a_patch(slides, tmp_path):
    tile_slides(slides[:1], tmp_path / "store", OPTIONS)
    with h5py.File(tmp_path / "store" / "a.h5") as file:
        assert file["coords"].dtype == np.int64
        assert file["img"].chunks == (1, 64, 64, 3)
        assert file["img"].compression is None
        attributes = dict(file["img"].attrs)
    assert attributes == {
        "patch_size_src": 128.0,
        "patch_size_target": 64,
        "downsample": 2.0,
        "pixel_size": pytest.approx(0.5),
    }


def test_compressed_pixels_are_the_same(slides, tmp_path):
    tile_slides(slides[:1], tmp_path / "plain", OPTIONS)
    plain = PatchH5Source(tmp_path / "plain" / "a.h5")
    for compression in ("lzf", "gzip"):
        tile_slides(slides[:1], tmp_path / compression, OPTIONS, compression=compression)
        with h5py.File(tmp_path / compression / "a.h5") as file:
            assert file["img"].compression == compression
        np.testing.assert_array_equal(PatchH5Source(tmp_path / compression / "a.h5")[3], plain[3])


def test_the_store_is_a_manifest_that_keeps_its_weights(slides, tmp_path):
    store = tmp_path / "store"
    summary = tile_slides(slides[1:], store, OPTIONS)
    content = json.loads(summary.manifest.read_text())
    content["sources"][0]["weight"] = 2.0
    summary.manifest.write_text(json.dumps(content))
    tile_slides(slides, store, OPTIONS)
    for path in (store, summary.manifest):
        samples = open_samples(path)
        assert [source.path.name for source in samples.sources] == ["a.h5", "b.h5"]
        assert samples.weights == (1.0, 2.0)
    with pytest.raises(DataError, match=r"store: holds several sources; give one of them, such as .*a\.h5"):
        open_source(store)


def test_a_second_run_keeps_what_is_there(slides, tmp_path):
    first = tile_slides(slides[:1], tmp_path / "store", OPTIONS)
    before = (tmp_path / "store" / "a.h5").stat()
    seen = []
    second = tile_slides(slides, tmp_path / "store", OPTIONS, on_slide=seen.append)
    assert [result.status for result in second.slides] == ["kept", "tiled"]
    assert second.slides[0].num_patches == first.slides[0].num_patches == 8
    assert seen == list(second.slides)
    after = (tmp_path / "store" / "a.h5").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    lines = [json.loads(line) for line in (tmp_path / "store" / "tiling.jsonl").read_text().splitlines()]
    assert [(line["output"], line["status"], line["num_patches"]) for line in lines] == [
        ("a.h5", "tiled", 8),
        ("a.h5", "kept", 8),
        ("b.h5", "tiled", 8),
    ]


def test_other_options_or_another_slide_are_not_mixed_in(slides, tmp_path):
    store = tmp_path / "store"
    tile_slides(slides, store, OPTIONS)
    other = TilingOptions(patch_size_px=64, resolution_um_per_px=1.0, min_tissue=0.9)
    summary = tile_slides(slides, store, other)
    assert [result.status for result in summary.failed] == ["failed", "failed"]
    assert (
        "a.h5: was cut with `min_tissue=0.5` instead of 0.9; choose another `output`"
        in summary.failed[0].message
    )
    write_slide(slides[0], tissue=(0, 0, 512, 256))
    (failed,) = tile_slides(slides, store, OPTIONS).failed
    assert "a.h5: was cut from another file than" in failed.message
    assert tile_slides(slides, store, OPTIONS, overwrite=True).failed == ()
    np.testing.assert_array_equal(PatchH5Source(store / "a.h5").coords, PatchH5Source(store / "b.h5").coords)
    (store / "a.h5").unlink()
    with h5py.File(store / "a.h5", "w") as file:
        file["img"] = np.zeros((1, 8, 8, 3), np.uint8)
    (failed,) = tile_slides(slides, store, OPTIONS).failed
    assert "a.h5: exists and was not written by 'tile'" in failed.message
    with h5py.File(store / "a.h5", "a") as file:
        file.attrs.update({"tiling": "no JSON", "slide_fingerprint": ""})
    assert len(tile_slides(slides, store, OPTIONS).failed) == 1


def test_a_slide_that_fails_does_not_stop_the_others(slides, tmp_path):
    broken, blank = tmp_path / "slides" / "broken.svs", tmp_path / "slides" / "blank.tif"
    broken.write_text("no slide")
    write_slide(blank, tissue=None)
    summary = tile_slides([broken, slides[0], blank, slides[1]], tmp_path / "store", OPTIONS)
    assert [result.status for result in summary.slides] == ["failed", "tiled", "failed", "tiled"]
    assert "broken.svs: cannot be opened as a slide" in summary.failed[0].message
    assert "blank.tif: no tissue found" in summary.failed[1].message
    assert sorted(file.name for file in (tmp_path / "store").rglob("*.*")) == [
        "a.h5",
        "a.png",
        "b.h5",
        "b.png",
        "manifest.json",
        "tiling.jsonl",
    ]
    assert len(open_samples(tmp_path / "store")) == 16


@pytest.mark.parametrize("error", [PatchError("unreadable region"), KeyboardInterrupt()])
def test_a_slide_broken_off_halfway_leaves_no_patch_file(slides, tmp_path, monkeypatch, error):
    read = SlideSource.__getitem__

    def fail(source, index):
        if index == 5:
            raise error
        return read(source, index)

    monkeypatch.setattr(SlideSource, "__getitem__", fail)
    if isinstance(error, PatchError):
        assert tile_slides(slides[:1], tmp_path / "store", OPTIONS).failed[0].message == "unreadable region"
    else:
        with pytest.raises(KeyboardInterrupt):
            tile_slides(slides[:1], tmp_path / "store", OPTIONS)
    assert list((tmp_path / "store").glob("*.h5")) == list((tmp_path / "store").glob(".*.h5")) == []
    monkeypatch.setattr(SlideSource, "__getitem__", read)
    assert tile_slides(slides[:1], tmp_path / "store", OPTIONS).slides[0].status == "tiled"


@pytest.mark.parametrize("patch_size_px", [64, 4])
def test_the_thumbnail_tints_the_tiles_and_nothing_else(slides, tmp_path, patch_size_px):
    options = TilingOptions(patch_size_px=patch_size_px, resolution_um_per_px=1.0)
    tile_slides(slides[:1], tmp_path / "store", options, thumbnail_size_px=256)
    with Image.open(tmp_path / "store" / "thumbnails" / "a.png") as image:
        thumbnail = np.asarray(image).astype(int)
    assert thumbnail.shape == (192, 256, 3)
    plain = slide_pixels(1024, 768, (256, 256, 768, 512))[::4, ::4].astype(int)
    changed = np.abs(thumbnail - plain).max(axis=2) > 20
    expected = np.zeros_like(changed)
    expected[64:128, 64:192] = True
    assert (changed == expected).mean() > 0.98


def test_what_was_warned_of_is_reported(slides, tmp_path):
    options = TilingOptions(patch_size_px=64, resolution_um_per_px=0.25)
    (result,) = tile_slides(slides[:1], tmp_path / "store", options).slides
    assert result.status == "tiled"
    assert "coarser than the requested 0.25" in result.message


def test_two_slides_of_one_name_are_refused(slides, tmp_path):
    with pytest.raises(DataError, match=r"would both become a\.h5"):
        tile_slides([slides[0], tmp_path / "other" / "a.svs"], tmp_path / "store")
    with pytest.raises(DataError, match="no slide given"):
        tile_slides([], tmp_path / "store")


@pytest.mark.slow
def test_a_worker_process_cuts_the_same(slides, tmp_path):
    alone = tile_slides(slides, tmp_path / "alone", OPTIONS)
    slides[0].with_name("broken.svs").write_text("no slide")
    together = tile_slides(
        [*slides, slides[0].with_name("broken.svs")], tmp_path / "store", OPTIONS, num_workers=1
    )
    assert [result.status for result in together.slides] == ["tiled", "tiled", "failed"]
    for one, other in zip(alone.slides, together.slides[:2], strict=True):
        assert one.output.name == other.output.name
        first, second = PatchH5Source(one.output), PatchH5Source(other.output)
        np.testing.assert_array_equal(first.coords, second.coords)
        np.testing.assert_array_equal(first[7], second[7])
