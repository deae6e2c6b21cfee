"""``timm-mvhybrid tile``: what it writes, what it prints, and how it fails."""

import json
from pathlib import Path

import h5py
import pytest
from PIL import Image
from support.generated_slides import write_slide

from timm_mvhybrid.cli import main
from timm_mvhybrid.data import open_source


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path / "one.tif")
    write_slide(tmp_path / "two.tif")
    write_slide(tmp_path / "blank.tif", tissue=None)
    return tmp_path


def test_slides_become_a_store(folder, capsys):
    assert main(["tile", "one.tif", "two.tif", "--output", "store", "--patch-size", "128"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    summary = json.loads(printed.out)
    assert summary == {
        "manifest": "store/manifest.json",
        "num_patches": summary["num_patches"],
        "num_tiled": 2,
        "num_kept": 0,
        "num_failed": 0,
    }
    lengths = [len(open_source(folder / "store" / f"{name}.h5")) for name in ("one", "two")]
    assert sum(lengths) == summary["num_patches"] == 16
    with Image.open("store/thumbnails/one.png") as thumbnail:
        assert max(thumbnail.size) <= 1024
    assert main(["tile", "one.tif", "two.tif", "--output", "store", "--patch-size", "128"]) == 0
    assert json.loads(capsys.readouterr().out)["num_kept"] == 2


def test_options_reach_the_library(folder, capsys):
    options = "--resolution 1.0 --patch-size 64 --overlap 32 --min-tissue 1 --slide-resolution 0.5"
    options += " --compression gzip --thumbnail-size 200"
    write_slide(folder / "unscaled.tif", um_per_px=None)
    assert main(["tile", "unscaled.tif", "--output", "store", *options.split()]) == 0
    with h5py.File("store/unscaled.h5") as file:
        assert file["img"].shape == (21, 64, 64, 3)
        assert file["img"].compression == "gzip"
    with Image.open("store/thumbnails/unscaled.png") as thumbnail:
        assert max(thumbnail.size) <= 200


def test_a_slide_that_fails_is_named_and_the_others_are_cut(folder, capsys):
    assert main(["tile", "blank.tif", "one.tif", "--output", "store", "--patch-size", "128"]) == 1
    printed = capsys.readouterr()
    (error,) = printed.err.splitlines()
    assert error.startswith("error: ")
    assert "blank.tif: no tissue found" in error
    summary = json.loads(printed.out)
    assert (summary["num_failed"], summary["num_tiled"]) == (1, 1)
    assert (folder / "store" / "one.h5").is_file()
    assert not (folder / "store" / "blank.h5").exists()


def test_wrong_options_leave_nothing(folder, capsys):
    assert main(["tile", "one.tif", "--output", "store", "--min-tissue", "2"]) == 1
    assert "must lie between 0 and 1" in capsys.readouterr().err
    assert not (folder / "store").exists()


def test_an_interruption_keeps_what_is_done_and_says_how_to_go_on(folder, capsys, monkeypatch):
    from timm_mvhybrid.data import tile_store

    cut = tile_store.write_tile_file

    def interrupt(*arguments):
        if Path("store", "two.h5") in arguments:
            raise KeyboardInterrupt
        return cut(*arguments)

    monkeypatch.setattr(tile_store, "write_tile_file", interrupt)
    assert main(["tile", "one.tif", "two.tif", "--output", "store", "--patch-size", "128"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("run it again to go on")
    assert (folder / "store" / "one.h5").is_file()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert main(["tile", "one.tif", "two.tif", "--output", "store", "--patch-size", "128"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["num_kept"], summary["num_tiled"]) == (1, 1)


def test_help_states_units_and_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["tile", "--help"])
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "SLIDE",
        "--output DIR",
        "--resolution UM_PER_PX",
        "µm/px",
        "(default: 0.5)",
        "--compression",
    ):
        assert text in printed
