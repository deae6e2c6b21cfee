"""Files that an earlier version wrote are read: tests/golden/before_the_move/README.md says how they were made."""

import json
import shutil
import tarfile
from pathlib import Path

import h5py
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from support.pretraining import lines, teacher

from timm_mvhybrid.cli import main
from timm_mvhybrid.cohorts.bags import read_bags
from timm_mvhybrid.data import open_samples, open_source, read_manifest

FILES = Path(__file__).parent / "golden" / "before_the_move"
MODEL = "local-dir:exported"  # by the name that the files have it by
OPTIONS = json.dumps({"embed_dim": 16, "depth": 2, "num_heads": 1, "img_size": 64})
NUMBERS_OF_REPORTS = {
    "expression": "0.374 ± 0.065",
    "classification": "0.790",
    "retrieval": "0.750",
    "slides": "0.650",
    "survival": "0.625",
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A copy of the files as the folder in which the commands run."""
    folder = shutil.copytree(FILES, tmp_path / "files")
    with tarfile.open(folder / "run.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    monkeypatch.chdir(folder)
    return folder


def embeddings(file):
    with h5py.File(file) as content:
        return torch.from_numpy(content["embeddings"][()])


def close(actual, expected):
    """Features of the same weights and pixels: sums of at most 768 float32 summands, of values up to 2, in another order."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_patch_stores_are_read_and_their_slides_kept(files, capsys):
    (entry,) = read_manifest(files / "store" / "manifest.json")
    assert entry.weight == 1
    assert len(open_samples([files / "store" / "manifest.json"])) == 3
    source = open_source(files / "store" / "tissue.h5")
    assert source.coords.tolist() == [[64, 64], [128, 64], [192, 64]]
    with h5py.File(files / "store" / "tissue.h5") as content:
        assert content["img"][()].mean() == 132.9375
    tile = ["tile", "tissue.tif", "--output", "store", "--patch-size", "64", "--compression", "gzip"]
    assert main(tile) == 0
    assert json.loads(capsys.readouterr().out)["num_kept"] == 1


def test_embeddings_are_read_and_computed_as_before(files):
    (bag,), record = read_bags(files / "bags", ["tissue"])
    assert bag.shape == (3, 16)
    assert record.name == MODEL
    embed = ["embed", "store/tissue.h5", "--model", MODEL, "--pretrained", "--device", "cpu"]
    assert main([*embed, "--num-workers", "0", "--output", "again.h5"]) == 0
    close(embeddings("again.h5"), torch.from_numpy(bag))


def test_embeddings_of_the_cache_are_taken(files, monkeypatch):
    monkeypatch.setattr("timm_mvhybrid.embed.embedding_cache.__version__", "0.1.0.dev0")
    (file,) = Path("cache").rglob("*.h5")
    before = file.stat().st_mtime_ns
    evaluate = ["evaluate", "retrieval", "images", "--model", MODEL, "--pretrained", "--num-folds", "3"]
    evaluate += ["--baselines", "none"]
    assert main([*evaluate, "--device", "cpu", "--cache", "cache", "--output", "retrieval"]) == 0
    assert list(Path("cache").rglob("*.h5")) == [file]
    assert file.stat().st_mtime_ns == before


@pytest.mark.fixed_seed
def test_runs_go_on(files):
    expected, weights = lines(files / "run"), teacher(files / "run")
    assert main(["pretrain", "--config", "run/config.json", "--resume", "must"]) == 0
    assert sorted(path.name for path in Path("run", "checkpoints").glob("step_*")) == [
        "step_00000002",
        "step_00000004",
    ]
    found = lines(files / "run")
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    for line, before in zip(found[2:], expected[2:], strict=True):
        assert line["loss/total"] == pytest.approx(before["loss/total"], rel=1e-3)
    for name, value in teacher(files / "run").items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5)
    assert main(["plot", "run", "--output", "curves.png"]) == 0


def test_checkpoints_and_teachers_are_exported(files):
    export = ["export", "--model", "test_mvhybrid", "--model-args", OPTIONS]
    assert main([*export, "run/teacher.safetensors", "--output", "again"]) == 0
    again, before = (load_file(Path(folder, "model.safetensors")) for folder in ("again", "exported"))
    assert again.keys() == before.keys()
    for name, value in again.items():
        assert torch.equal(value, before[name])
    assert main([*export, "run", "--output", "earlier"]) == 0
    earlier = load_file(Path("earlier", "model.safetensors"))
    assert not all(torch.equal(earlier[name], value) for name, value in before.items())
    card = Path("earlier", "README.md").read_text()
    assert "step_00000002" in card
    assert "generated" in card


def test_exports_load(files):
    expected = embeddings(Path("bags", "tissue.h5"))
    model = timm.create_model(MODEL, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    source = open_source(files / "store" / "tissue.h5")
    images = torch.stack([transform(Image.fromarray(source[index])) for index in range(3)])
    with torch.no_grad():
        close(model(images), expected)


@pytest.mark.parametrize("task", NUMBERS_OF_REPORTS)
def test_results_are_rendered(files, task):
    assert main(["report", "render", f"reports/{task}", "--output", "page"]) == 0
    assert NUMBERS_OF_REPORTS[task] in Path("page", "tables.md").read_text()
    assert Path("page", "index.html").is_file()


def test_results_are_compared(files):
    assert main(["report", "compare", "reports/slides", "reports/survival", "--output", "page"]) == 0
    tables = Path("page", "tables.md").read_text()
    assert all(NUMBERS_OF_REPORTS[task] in tables for task in ("slides", "survival"))
