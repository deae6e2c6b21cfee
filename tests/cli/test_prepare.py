"""``timm-mvhybrid prepare``: from a platform's folder to a task that the other commands read."""

import json

import pytest
from PIL import Image
from support.space_ranger_folders import UM_PER_PX, visium, visium_hd, write_image
from support.st_sections import write_section

from timm_mvhybrid.cli import main
from timm_mvhybrid.cohorts.hest_layout import open_task, read_sample
from timm_mvhybrid.data import PatchH5Source

SMALL = ["--patch-size", "28", "--resolution", "4"]


def words(folder, *more):
    return [str(folder.outs), "--slide", str(folder.image), "--output", "ROOT/TASK", *SMALL, *more]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_samples_of_two_platforms_become_one_task(tmp_path, capsys):
    first = visium(tmp_path / "a", positions="tissue_positions_list.csv")
    assert (
        main(["prepare", "visium", *words(first, "--sample", "V1", "--study", "A", "--patient", "P1")]) == 0
    )
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["status"] == "prepared"
    assert summary["um_per_px"] == pytest.approx(UM_PER_PX)
    assert summary["notes"]["platform"] == "Visium"
    assert (summary["left_out"], summary["num_splits"]) == ("", 0)
    assert summary["picture"] == "ROOT/TASK/prepared/V1.png"
    second = visium_hd(tmp_path / "b")
    assert (
        main(["prepare", "visium-hd", *words(second, "--sample", "H1", "--study", "B", "--patient", "P2")])
        == 0
    )
    summary = json.loads(capsys.readouterr().out)
    assert summary["notes"]["bins"] == "square_008um"
    assert (summary["left_out"], summary["num_splits"]) == ("study", 2)
    task = open_task("ROOT")
    assert [split.test for split in task.splits] == [("V1",), ("H1",)]
    for name in ("V1", "H1"):
        sample = read_sample(task, name)
        assert len(PatchH5Source(sample.patches)) == len(sample.barcodes) > 50


def test_a_sample_that_is_done_is_kept_and_says_so(tmp_path, capsys):
    folder = visium(tmp_path)
    arguments = ["prepare", "visium", *words(folder, "--sample", "V1", "--study", "A")]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["status"] == "kept"
    assert printed.err == (
        "V1: kept, because it was prepared with the same options from the same files; prepare it again with --overwrite\n"
    )
    assert main([*arguments, "--slide-resolution", "2.6"]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "was prepared with --slide-resolution None instead of 2.6" in error
    assert "replace it with --overwrite" in error
    assert main([*arguments, "--slide-resolution", "2.6", "--overwrite"]) == 0


def test_what_is_wrong_is_said_in_flags_and_nothing_is_written(tmp_path, capsys):
    folder = visium(tmp_path)
    far = write_image(tmp_path / "far.tif", um_per_px=UM_PER_PX * 1.1)
    arguments = ["prepare", "visium", *words(folder, "--sample", "V1", "--study", "A"), "--slide", str(far)]
    assert main(arguments) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "states 2.75 µm/px" in error
    assert "or settle it with --slide-resolution 2.5" in error
    assert main(["prepare", "visium", *words(folder, "--sample", "../V1", "--study", "A")]) == 1
    assert "--sample is '../V1'" in capsys.readouterr().err
    bins = visium_hd(tmp_path / "hd")
    assert main(["prepare", "visium-hd", *words(bins, "--sample", "H", "--study", "A", "--stride", "3")]) == 1
    assert "change --patch-size, --resolution or --stride" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "ROOT").rglob("*") if path.is_file()]


def test_patches_beyond_the_image_are_counted(tmp_path, capsys):
    folder = visium(tmp_path)
    with Image.open(folder.image) as image:
        image.crop((0, 0, 700, 420)).save(tmp_path / "cut.png")
    # else the image is said not to be as large as Space Ranger's
    (folder.outs / "spatial" / "tissue_hires_image.png").unlink()
    table = folder.table[folder.table["in_tissue"] == 1]
    assert (table["pxl_row_in_fullres"] < 420).all()
    num_over = int((table["pxl_row_in_fullres"].round() + 22.4 > 420).sum())
    arguments = [
        str(folder.outs),
        "--slide",
        "cut.png",
        "--output",
        "T",
        *SMALL,
        "--sample",
        "V",
        "--study",
        "A",
    ]
    assert main(["prepare", "visium", *arguments]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["num_over_edge"] == num_over > 0
    assert f"V: {num_over} of {len(table)} patches reach beyond the image, and are white there" in printed.err


def test_sections_of_spatial_transcriptomics(tmp_path, capsys):
    for name in ("A1", "A2", "B1"):
        write_section(tmp_path / "raw", name)
    patients = {name: {"patient": name[0]} for name in ("A1", "A2", "B1")}
    (tmp_path / "raw" / "sections.json").write_text(json.dumps(patients))
    arguments = [
        "prepare",
        "st",
        "raw",
        "--output",
        "T",
        "--study",
        "ours",
        "--patch-size",
        "10",
        "--resolution",
        "8",
    ]
    assert main([*arguments, "--sample", "A1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == {
        "task": "T", "samples": ["A1"], "num_prepared": 1, "num_kept": 0, "num_spots": 9, "num_over_edge": 0, "left_out": "",
        "num_splits": 0,
    }  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert (summary["num_prepared"], summary["num_kept"]) == (2, 1)
    assert (summary["left_out"], summary["num_splits"]) == ("patient", 2)
    assert printed.err.startswith("A1: kept")
    assert len(open_task("T").splits) == 2


def test_an_interruption_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from timm_mvhybrid.cohorts import spot_patches

    def interrupt(self, index):
        raise KeyboardInterrupt

    folder = visium(tmp_path)
    arguments = ["prepare", "visium", *words(folder, "--sample", "V1", "--study", "A")]
    monkeypatch.setattr(spot_patches.SpotPatches, "__getitem__", interrupt, raising=False)
    assert main(arguments) == 130
    assert capsys.readouterr().err.endswith("interrupted; nothing of this sample was written; run it again\n")
    assert not [path for path in (tmp_path / "ROOT").rglob("*") if path.is_file()]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
