"""``timm-mvhybrid cohort``: what it prints, and where the page is."""

import json

import h5py
import numpy as np
import pytest
from support.generated_slides import write_slide

from timm_mvhybrid.cli import main
from timm_mvhybrid.embed.slide_cohort import RecordLog, SlideRecord

pytest.importorskip("sklearn")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    with h5py.File("out/S1.h5", "w") as stored:
        stored["embeddings"] = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
        stored["coords"] = np.arange(18).reshape(9, 2) * 100
    RecordLog(tmp_path / "out").append(
        SlideRecord(
            slide_id="S2[red]", path="/S2.svs", state="failed", error="S2.svs: no resolution; give `slide_resolution_um_per_px`"
        )
    )  # fmt: skip
    return tmp_path


def test_it_prints_tables_and_the_page(folder, capsys):
    assert main(["cohort", "out"]) == 0
    printed = capsys.readouterr().out
    # in the words of the command that has to be run again
    assert "S2.svs: no resolution; give --slide-resolution" in printed
    assert "S2[red]" in printed
    assert printed.splitlines()[-1] == "out/overview/index.html"
    page = (folder / "out" / "overview" / "index.html").read_text()
    assert "give --slide-resolution" in page
    assert main(["cohort", "out", "--output", "page", "--picture-size", "64", "--num-workers", "0"]) == 0
    assert (folder / "page" / "pictures" / "S1.png").is_file()


def test_json_has_the_sums_and_the_problems(folder, capsys):
    assert main(["cohort", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["slides"], found["done"], found["failed"], found["tiles"]) == (2, 1, 1, 9)
    assert found["problems"][0]["slide_id"] == "S2[red]"
    assert found["tiles_per_second"] is None


def test_problems_are_one_line(folder, capsys):
    (folder / "empty").mkdir()
    for arguments, message in [
        (["cohort", "empty"], "empty: holds no embedded slides"),
        (["cohort", "out", "--picture-size", "1"], "--picture-size must be at least 16"),
        (["cohort", "out", "--slides", "none"], "none: no such folder"),
    ]:
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_what_embed_writes_is_shown_and_exported(tmp_path, monkeypatch, capsys):
    anndata = pytest.importorskip("anndata")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "a.tif")
    write_slide(tmp_path / "slides" / "b.tif")
    write_slide(tmp_path / "slides" / "bare.tif", um_per_px=None)
    embed = "embed slides --model test_vit12 --output out --patch-size 64 --device cpu --num-workers 0 --format h5ad"
    assert main(embed.split()) == 3
    assert set(anndata.read_h5ad("out/b.h5ad").obs["slide_id"]) == {"b"}
    assert not (tmp_path / "out" / "bare.h5ad").exists()
    capsys.readouterr()
    assert main(["cohort", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("slides", "done", "failed", "tiles")} == {
        "slides": 3, "done": 2, "failed": 1, "tiles": 64,
    }  # fmt: skip
    assert found["tiles_per_second"] > 0
    # both rectangles of 512 × 256 px at 0.5 µm/px
    assert found["tissue_mm2"] == pytest.approx(2 * 512 * 256 * 0.25e-6)
    assert "give it with --slide-resolution" in found["problems"][0]["problem"]
