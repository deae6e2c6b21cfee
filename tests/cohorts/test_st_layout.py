import gzip
import json

import numpy as np
import pytest
from support.st_sections import PLACES, pixel, write_section

from timm_mvhybrid.cohorts import read_st_sample, write_st_task
from timm_mvhybrid.cohorts.hest_layout import open_task, read_sample
from timm_mvhybrid.data import PatchH5Source
from timm_mvhybrid.runtime.errors import DataError


def files(root, name="A1"):
    return (
        root / "images" / f"{name}.png",
        root / "counts" / f"{name}.tsv.gz",
        root / "spots" / f"{name}_selection.tsv",
    )


def test_patches_and_counts_are_those_of_their_spots(tmp_path):
    root = write_section(tmp_path, skip_counts=1)
    sample = read_st_sample(*files(root), patch_size_px=10, resolution_um_per_px=8.0)
    assert sample.sample_id == "A1"
    assert sample.um_per_px == pytest.approx(4.0)
    assert sample.barcodes == tuple(f"{x}x{y}" for x, y in PLACES[1:])
    assert sample.num_unmatched == 2
    assert sample.counts.toarray().tolist() == [[x, y, 0] for x, y in PLACES[1:]]
    # 80 µm around the centre are 20 px, in the middle of the 21 px that are painted
    assert sample.patches.shape == (8, 10, 10, 3)
    for patch, (x, y) in zip(sample.patches, PLACES[1:], strict=True):
        assert patch[2:-2, 2:-2].reshape(-1, 3).tolist() == [[20 * x, 20 * y, 7]] * 36
    np.testing.assert_array_equal(sample.coords, np.array([pixel(x, y) for x, y in PLACES[1:]]) - 10)


def test_what_lies_beyond_the_image_is_white(tmp_path):
    sample = read_st_sample(*files(write_section(tmp_path)), patch_size_px=100, resolution_um_per_px=4.0)
    assert (sample.patches[0][:9] == 255).all()
    assert (sample.patches[0][:, :19] == 255).all()
    assert (sample.patches[0][11:, 21:] < 255).any(axis=2).all()


def test_a_task_reads_back_with_patients_that_are_left_out(tmp_path):
    root = tmp_path / "raw"
    for name in ("A1", "A2", "B1"):
        write_section(root, name)
    (root / "sections.json").write_text(
        json.dumps({name: {"patient": name[0]} for name in ("A1", "A2", "B1")})
    )
    task = open_task(
        write_st_task(root, tmp_path / "TASK", study="ours", patch_size_px=10, resolution_um_per_px=8.0)
    )
    assert [(split.train, split.test) for split in task.splits] == [
        (("B1",), ("A1", "A2")),
        (("A1", "A2"), ("B1",)),
    ]
    found = read_sample(task, "A2")
    assert found.barcodes == [f"{x}x{y}" for x, y in PLACES]
    assert found.counts.toarray()[1].tolist() == [PLACES[1][0], PLACES[1][1], 0]
    assert PatchH5Source(found.patches).resolution_um_per_px == pytest.approx(8.0)
    assert (task.path / "studies.csv").read_text().splitlines() == [
        "sample_id,study,patient",
        *(f"{name},ours,{name[0]}" for name in ("A1", "A2", "B1")),
    ]


def test_splits_leave_sections_out_on_request(tmp_path):
    root = tmp_path / "raw"
    for name in ("A1", "A2", "B1"):
        write_section(root, name)
    options = {"study": "ours", "patch_size_px": 10, "leave_out": "section"}
    task = open_task(write_st_task(root, tmp_path / "TASK", **options))
    assert [split.test for split in task.splits] == [("A1",), ("A2",), ("B1",)]
    assert not open_task(write_st_task(root, tmp_path / "OTHER", study="ours", patch_size_px=10)).splits
    with pytest.raises(DataError, match="`leave_out` is 'spot'; choose from patient, section"):
        write_st_task(root, tmp_path / "T", study="ours", leave_out="spot")


def changed(file, before, after):
    compressed = file.suffix == ".gz"
    text = gzip.decompress(file.read_bytes()).decode() if compressed else file.read_text()
    assert before in text
    text = text.replace(before, after)
    file.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())


@pytest.mark.parametrize(
    ("which", "before", "after", "message"),
    [
        (1, "4x2\t4\t2", "4x2\t-4\t2", "spot '4x2', gene 'G1' has the value -4, which is not a count"),
        (1, "4x2\t4\t2", "4x2\t4.5\t2", "has the value 4.5, which is not a count"),
        (1, "4x2\t4\t2\t0", "4x2\t4\t2", "spot '4x2' has 2 values for 3 genes"),
        (1, "4x2\t4\t", "4x2\tx\t", "spot '4x2' has a value that is no number"),
        (1, "4x2", "5x2", "spot '5x2' occurs more than once"),
        (1, "G2", "G1", "gene 'G1' occurs more than once"),
        (2, "pixel_x", "pixels", "lacks the column 'pixel_x'"),
        (2, "4\t2\t4\t2", "5\t2\t4\t2", "repeats the spot 5x2"),
        (2, "80.0\t", "x\t", "line 3 is no spot"),
        (2, "130.0\t40.0", "530.0\t40.0", "outside the image|a px is"),
        (2, "\t1\n", "\t0\n", "no spot is selected"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, which, before, after, message):
    paths = files(write_section(tmp_path))
    changed(paths[which], before, after)
    with pytest.raises(DataError, match=message):
        read_st_sample(*paths)


def test_sections_that_cannot_be_used(tmp_path):
    root = write_section(tmp_path)
    with pytest.raises(DataError, match="has no section 'Z'; it has A1"):
        write_st_task(root, tmp_path / "T", study="s", sections=["Z"])
    (root / "sections.json").write_text("{}")
    with pytest.raises(DataError, match=r"sections\.json: must hold"):
        write_st_task(root, tmp_path / "T", study="s")
    paths = files(root)
    with pytest.raises(DataError, match="share no spot"):
        read_st_sample(
            paths[0], paths[1], files(write_section(tmp_path / "o", places=[(1, 1), (2, 2)]))[2], um_per_px=4
        )
    with pytest.raises(DataError, match=r"one row or column.*give `um_per_px`"):
        read_st_sample(*files(write_section(tmp_path / "row", places=PLACES[:3])))
    paths[0].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"A1\.png: not a readable image"):
        read_st_sample(*paths)
    paths[2].unlink()
    with pytest.raises(DataError, match=r"A1_selection\.tsv: missing, and .*A1\.png exists"):
        write_st_task(root, tmp_path / "T", study="s")
    with pytest.raises(DataError, match="no image in its folder images"):
        write_st_task(tmp_path / "nothing", tmp_path / "T", study="s")
