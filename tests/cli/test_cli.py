import json
import sys
from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import save_file
from support.generated_patches import (
    clam_attributes,
    random_patches,
    write_coordinates,
    write_hest,
    write_images,
)
from support.generated_slides import REAL_SLIDE, write_slide

from timm_mvhybrid.cli import main
from timm_mvhybrid.evaluate import load_backbone
from timm_mvhybrid.version import __version__

COMPUTE = "timm_mvhybrid.embed.source_embedding.pooled_features"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with one input of each kind; what a failure may leave is what lies here before."""
    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path / "slide.tif")
    write_slide(tmp_path / "unscaled.tif", um_per_px=None)
    write_slide(tmp_path / "blank.tif", tissue=None)
    write_hest(tmp_path / "hest.h5", random_patches(4))
    write_hest(tmp_path / "twice.h5", random_patches(2), ["A", "A"])
    write_hest(tmp_path / "empty.h5", random_patches(1)[:0], [])
    write_coordinates(tmp_path / "slide.h5", [[256, 256]], attributes=clam_attributes(128, 0))
    write_coordinates(tmp_path / "far.h5", [[4096, 0]], attributes=clam_attributes(128, 0))
    write_coordinates(tmp_path / "lonely.h5", [[0, 0]], attributes={"patch_size": 128, "patch_level": 0})
    write_images(tmp_path / "images", 4)
    write_images(tmp_path / "broken", 3)
    (tmp_path / "broken" / "b" / "01.png").write_bytes(b"no image")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    return tmp_path


def embed(*arguments: str, model: str = "test_mvhybrid", output: str = "out.h5") -> int:
    return main([
        "embed", *arguments, "--model", model, "--output", output, "--num-workers", "0", "--device", "cpu"
    ])  # fmt: skip


def test_real_slide(tmp_path, capsys):
    output = tmp_path / "out.h5"
    assert embed(str(REAL_SLIDE), output=str(output)) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    summary = json.loads(printed.out)
    assert abs(summary["num_patches"] - 33) <= 2
    assert summary["embedding_dim"] == 64
    assert summary["output"] == str(output)
    assert summary["patches_per_second"] > 0
    assert "warning: the weights are random" in printed.err
    with h5py.File(output) as file:
        assert file["embeddings"].shape == (summary["num_patches"], 64)
        assert file["coords"].shape == (summary["num_patches"], 2)
        assert file.attrs["resolution_um_per_px"] == 0.499
        assert file.attrs["patch_size_px"] == file.attrs["input_size_px"] == 256
        assert file.attrs["source"] == "CMU-1-Small-Region.svs"


def test_other_formats_go_by_the_suffix_and_leave_no_h5(folder, capsys):
    anndata = pytest.importorskip("anndata")
    before = set(folder.iterdir())
    assert embed("slide.tif", "--patch-size", "64", output="S1.h5ad") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["output"] == "S1.h5ad"
    found = anndata.read_h5ad("S1.h5ad")
    assert found.shape == (summary["num_patches"], summary["embedding_dim"])
    assert set(found.obs["slide_id"]) == {"S1"}
    assert set(folder.iterdir()) - before == {folder / "S1.h5ad"}
    assert embed("slide.tif", output="S1.h5ad") == 1
    assert "error: S1.h5ad: exists already; replace it with --overwrite" in capsys.readouterr().err


def test_formats_are_checked_before_the_model_is_made(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    for output, options, message in [
        ("out.zarr", (), "spatialdata is not installed; pip install 'timm-mvhybrid[spatialdata]'"),
        ("out.h5", ("--format", "h5ad"), "than --format h5ad; name it out.h5ad"),
        ("out.h5ad", ("--format", "h5"), "than --format h5; name it out.h5"),
    ]:
        assert embed("slide.tif", *options, model="no_such_model", output=output) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.endswith(f"{message}\n")
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["slide.tif", "hest.h5", "slide.h5", "images"])
def test_every_kind_of_input(folder, name):
    assert embed(name) == 0
    with h5py.File("out.h5") as file:
        assert len(file["embeddings"]) >= 1
        assert ("barcodes" in file) == (name == "hest.h5")
        assert ("paths" in file) == (name == "images")
        assert ("coords" in file) == (name != "images")


def test_options_reach_the_library(folder, capsys):
    options = "--resolution 1.0 --patch-size 64 --overlap 32 --min-tissue 1 --slide-resolution 0.5"
    options += " --input-size 96 --global-pool token+avg --dtype bfloat16 --batch-size 2 --seed 4"
    assert embed("unscaled.tif", *options.split()) == 0
    with h5py.File("out.h5") as file:
        assert file["coords"][()].tolist() == [[x, y] for y in (256, 320, 384) for x in range(256, 641, 64)]
        assert file["embeddings"].shape == (21, 128)
        attributes = dict(file.attrs)
    assert attributes["resolution_um_per_px"] == 1.0
    assert attributes["patch_size_px"] == 64
    assert attributes["input_size_px"] == 96
    assert attributes["global_pool"] == "token+avg"
    assert attributes["dtype"] == "bfloat16"


def test_checkpoint_silences_the_warning(folder, capsys):
    save_file(load_backbone("test_mvhybrid", seed=5).model.state_dict(), "mine.safetensors")
    assert embed("hest.h5", "--checkpoint", "mine.safetensors") == 0
    assert "random" not in capsys.readouterr().err
    with h5py.File("out.h5") as file:
        assert file.attrs["weights"] == "mine.safetensors"
        assert len(file.attrs["weights_sha256"]) == 64


def test_patches_over_the_edge_are_counted(folder, capsys):
    write_coordinates("edge.h5", [[256, 256], [1000, 256]], attributes=clam_attributes(64, 0))
    found = []
    for options in ([], ["--edge", "white"], ["--edge", "skip"]):
        assert embed("edge.h5", "--slide", "slide.tif", "--overwrite", *options) == 0
        summary = json.loads(capsys.readouterr().out)
        with h5py.File("out.h5") as file:
            assert (file.attrs["num_over_edge"], file.attrs["edge"]) == (1, summary["edge"])
            assert len(file["coords"]) == len(file["embeddings"]) == summary["num_patches"]
        found.append((summary["num_patches"], summary["num_over_edge"], summary["edge"]))
    assert found == [(2, 1, "black"), (2, 1, "white"), (1, 1, "skip")]


def test_overwrite(folder):
    assert embed("hest.h5") == 0
    assert embed("slide.tif") == 1
    assert embed("slide.tif", "--overwrite") == 0
    with h5py.File("out.h5") as file:
        assert "barcodes" not in file


# shown, where the suite makes other warnings errors
@pytest.mark.filterwarnings("default:.*coarser than the requested")
def test_coarse_slide_warns_in_one_line(folder, capsys):
    write_slide(folder / "coarse.tif", um_per_px=1.0)
    assert embed("coarse.tif", "--checkpoint", "nowhere") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warning: coarse.tif: the slide has 1 µm/px")


def test_skip_corrupt_reports_names(folder, capsys):
    assert embed("broken", "--skip-corrupt") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["num_corrupt"] == 1
    assert "warning: skipped broken/b/01.png: not a readable image" in printed.err


PROBLEMS = [
    (["missing.svs"], "missing.svs: No such file or directory; accepted are a slide"),
    (["notes.txt"], "notes.txt: cannot be opened as a slide"),
    (["nothing"], "nothing: the folder holds no image"),
    (["empty.h5"], "empty.h5: dataset 'img' is empty"),
    (["twice.h5"], "barcode 'A' occurs more than once"),
    (
        ["unscaled.tif"],
        "unscaled.tif: the slide states no usable resolution; give it with --slide-resolution",
    ),
    (["blank.tif"], "blank.tif: no tissue found"),
    (["slide.tif", "--min-tissue", "2"], "must lie between 0 and 1, not 2.0"),
    (["lonely.h5"], "give the slide with --slide FILE"),
    (["far.h5", "--slide", "slide.tif"], "far.h5: 1 of 1 coordinates lie outside slide.tif"),
    (["broken"], "broken/b/01.png: not a readable image"),
    (
        ["hest.h5", "--pretrained"],
        "no pretrained weights of test_mvhybrid could be loaded: timm-mvhybrid/test_mvhybrid.random/config.json: ",
    ),
    (["hest.h5", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
    (["hest.h5", "--checkpoint", "notes.txt"], "notes.txt"),
    (["hest.h5", "--device", "cuda:99"], "device 'cuda:99' is not available"),
    (["hest.h5", "--input-size", "100"], "does not take inputs of 100 px"),
    (["hest.h5", "--batch-size", "0"], "--batch-size must be at least 1"),
    (["hest.h5", "--output", "missing/out.h5"], "the output folder missing does not exist"),
    (["hest.h5", "--output", "notes.txt"], "notes.txt: exists already; replace it with --overwrite"),
    (["hest.h5", "--output", "hest.h5", "--overwrite"], "hest.h5: is the input itself"),
    (["hest.h5", "--model", "test_mvhybird"], "unknown model 'test_mvhybird'; did you mean"),
    (["hest.h5", "--model", "test_resnet", "--global-pool", "token"], "needs a class token"),
    (["hest.h5", "--log", "missing/log.jsonl"], "missing/log.jsonl: cannot be written (No such file"),
]


@pytest.mark.parametrize(("arguments", "message"), PROBLEMS, ids=[" ".join(case[0]) for case in PROBLEMS])
def test_problems_are_one_line_and_leave_nothing(folder, capsys, arguments, message):
    before = sorted(folder.rglob("*"))
    options = {"--model": "test_mvhybrid", "--output": "out.h5", "--device": "cpu", "--num-workers": "0"}
    for name, value in options.items():
        if name not in arguments:
            arguments = [*arguments, name, value]
    assert main(["embed", *arguments]) == 1
    printed = capsys.readouterr()
    errors = [
        line for line in printed.err.splitlines() if not line.startswith("warning: the weights are random")
    ]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert printed.out == ""
    assert sorted(folder.rglob("*")) == before


def fail_with(error):
    def compute(model, images, pooling):
        raise error

    return compute


@pytest.mark.parametrize(
    ("compute", "code", "message"),
    [
        (fail_with(torch.OutOfMemoryError("CUDA out of memory")), 1, "with a batch of 4; try --batch-size 2"),
        (
            lambda model, images, pooling: torch.full((len(images), 8), torch.nan),
            1,
            "hest.h5 patch 0 (SPOT-000-ä)",
        ),
        (fail_with(KeyboardInterrupt()), 130, "interrupted; no output was written"),
    ],
)
def test_failures_while_computing(folder, capsys, monkeypatch, compute, code, message):
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(COMPUTE, compute)
    assert embed("hest.h5") == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(folder.rglob("*")) == before


def test_unexpected_errors_keep_their_traceback(folder, monkeypatch):
    monkeypatch.setattr(COMPUTE, fail_with(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        embed("hest.h5")
    assert not (folder / "out.h5").exists()


def test_log(folder, monkeypatch):
    assert embed("hest.h5", "--log", "log.jsonl", "--log-every", "2", "--batch-size", "1") == 0
    monkeypatch.setattr(COMPUTE, fail_with(KeyboardInterrupt()))
    assert embed("hest.h5", "--log", "log.jsonl", "--overwrite") == 130
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "progress", "progress", "done", "start", "error"]
    assert lines[0]["options"]["model"] == "test_mvhybrid"
    assert [line["num_done"] for line in lines[1:3]] == [2, 4]
    assert lines[3]["num_patches"] == 4
    assert lines[5]["error"] == "KeyboardInterrupt"


@pytest.mark.parametrize(
    "arguments",
    [[], ["bogus"], ["embed", "x"], ["embed", "x", "--model", "m", "--output", "o", "--dtype", "int8"]],
)
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_two_kinds_of_weights_are_wrong_usage(capsys):
    assert embed("x", "--pretrained", "--checkpoint", "y") == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], ["embed", "models", "export", "publish"]),
        (
            ["embed", "--help"],
            ["INPUT", "--resolution UM_PER_PX", "µm/px", "(default: 0.5)", "(default: 256)"],
        ),
        (["models", "--help"], ["--json", "--all"]),
    ],
)
def test_help(arguments, expected, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for text in expected:
        assert text in printed


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"timm-mvhybrid {__version__}\n"


def test_models_as_table_and_as_json(capsys):
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert "\x1b" not in table
    assert "12 × MambaVision + EinFFT, 12 × attention + MLP" in table
    assert "none published" in table
    assert "test_mvhybrid" not in table
    assert main(["models", "--json", "--all"]) == 0
    rows = json.loads(capsys.readouterr().out)
    names = {row["name"]: row for row in rows}
    assert names["mvhybrid_small_patch16_256"]["embedding_dim"] == 384
    assert "test_mvhybrid" in names
    for name in names:
        assert (name in table) != name.startswith("test_")
