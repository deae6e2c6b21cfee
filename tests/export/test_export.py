"""An export is complete, exact, readable, described by itself, and refused where it could not be."""

import json
import os
import subprocess
import sys
import time

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.exports import exported, perturbed
from support.training_runs import MODEL, TEACHER_SEED, training_state, write_records

import timm_mvhybrid
from timm_mvhybrid.export.export import BFLOAT16_BOUND
from timm_mvhybrid.hub import ExportError, export, verify
from timm_mvhybrid.models import TEST_MODEL_NAMES, CheckpointError
from timm_mvhybrid.weights.fingerprint import relative_error


def to_official(weights):
    """Renames our keys to those of the official repository."""
    renamed = {}
    for key, value in weights.items():
        key = key.replace(".attn.", ".mixer.").replace(".mlp.", ".channel_mixer.")
        renamed["backbone." + key.replace("blocks.", "blocks.blocks.")] = value
    return renamed


@pytest.fixture
def run(tmp_path):
    """A run with records and one checkpoint."""
    write_records(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    torch.save(training_state(), tmp_path / "run" / "checkpoints" / "step_20.pt")
    return tmp_path / "run"


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_loads_with_features_within_the_bound(tmp_path, name, dtype):
    folder, source = exported(tmp_path, name, dtype=dtype)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    image = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = source(image), model(image)
    error = float((found - expected).norm() / expected.norm())
    if dtype == "float32":
        assert torch.equal(found, expected)
    else:
        assert 0 < error < BFLOAT16_BOUND
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            stated = float(file.metadata()["bfloat16_error"])
        assert stated == pytest.approx(relative_error(model, source), rel=0.01)


def test_bfloat16_rounds_matrices_and_keeps_what_is_sensitive(tmp_path):
    folder, source = exported(tmp_path, dtype="bfloat16")
    stored = load_file(folder / "model.safetensors")
    for name, value in source.state_dict().items():
        kept = value.ndim <= 1 or name.endswith("A_log")
        assert stored[name].dtype == (torch.float32 if kept else torch.bfloat16)
        assert torch.equal(stored[name], value if kept else value.to(torch.bfloat16))
    full, _ = exported(tmp_path / "full")
    assert (folder / "model.safetensors").stat().st_size < 0.6 * (full / "model.safetensors").stat().st_size


def test_bfloat16_is_refused_where_it_changes_too_much(tmp_path):
    model = perturbed("test_vim_einfft")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    save_file(model.state_dict(), tmp_path / "large.safetensors")
    with pytest.raises(ExportError, match=r"bfloat16 would change the features by .*`dtype='float32'`"):
        export(tmp_path / "large.safetensors", "test_vim_einfft", tmp_path / "out", dtype="bfloat16")
    assert not (tmp_path / "out").exists()
    export(tmp_path / "large.safetensors", "test_vim_einfft", tmp_path / "out")


def test_the_file_says_what_it_is(tmp_path, run):
    export(run, MODEL, tmp_path / "out", tag="ours")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["model"] == MODEL
    assert metadata["tag"] == "ours"
    assert metadata["branch"] == "teacher"
    assert metadata["timm_mvhybrid_version"] == timm_mvhybrid.__version__
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == MODEL
    assert config["num_classes"] == 0
    assert config["pretrained_cfg"]["tag"] == "ours"
    assert verify(tmp_path / "out").sha256 == config["timm_mvhybrid"]["weights"]["sha256"]


def test_the_teacher_is_exported_by_default(tmp_path, run):
    export(run, MODEL, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in perturbed(MODEL, TEACHER_SEED).state_dict().items():
        assert torch.equal(stored[name], value)


def test_official_checkpoints_are_exported(tmp_path):
    source = perturbed(MODEL)
    torch.save({"teacher": to_official(source.state_dict())}, tmp_path / "official.pth")
    export(tmp_path / "official.pth", MODEL, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in source.state_dict().items())


def test_options_of_the_model_travel_with_it(tmp_path):
    options = {"ssm_depth": 1, "init_values": 0.1, "img_size": 96}
    folder, source = exported(tmp_path, model_args=options)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert model.layout() == source.layout()
    assert model.pretrained_cfg["input_size"][1] == 96
    assert all(torch.equal(model.state_dict()[name], value) for name, value in source.state_dict().items())


def test_an_export_is_exported_again_in_another_type(tmp_path):
    folder, _ = exported(tmp_path)
    export(folder, MODEL, tmp_path / "small", dtype="bfloat16")
    assert verify(tmp_path / "small").metadata["dtype"] == "bfloat16"


def drop(weights):
    del weights["blocks.1.mixer.D"]


def add(weights):
    weights["blocks.1.mixer.E"] = torch.zeros(2)


def spoil(weights):
    weights["norm.bias"][1] = float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"1 missing \(blocks\.1\.mixer\.D\)"),
        (add, r"1 unexpected \(blocks\.1\.mixer\.E\)"),
        (spoil, r"norm\.bias hold NaN or Inf"),
    ],
)
def test_incomplete_and_damaged_weights_are_refused(tmp_path, change, message):
    weights = perturbed(MODEL).state_dict()
    change(weights)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        export(tmp_path / "w.safetensors", MODEL, tmp_path / "out")
    assert str(caught.value).startswith(str(tmp_path / "w.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "test_mvhybird"}, "is not a model of this package"),
        ({"model": "test_vit"}, "is not a model of this package"),
        ({"model_args": {"depht": 2}}, "cannot be built with"),
        ({"model_args": {"num_classes": 3}}, "exported without classifier"),
        ({"output": "missing/out"}, "does not exist; create it first"),
        ({"output": "w.safetensors"}, "exists and is not a folder"),
        ({"output": "full"}, "holds other files"),
    ],
)
def test_wrong_wishes_are_refused_before_anything_is_written(tmp_path, options, message):
    save_file(perturbed(MODEL).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    wishes = {"model": MODEL, "output": "out", **options}
    with pytest.raises(ExportError, match=message):
        export(
            tmp_path / "w.safetensors",
            wishes["model"],
            tmp_path / wishes["output"],
            model_args=wishes.get("model_args"),
            overwrite=True,
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_an_earlier_export_is_replaced_only_when_asked(tmp_path):
    folder, _ = exported(tmp_path)
    checkpoint = tmp_path / f"{MODEL}.checkpoint.safetensors"
    before = (folder / "model.safetensors").read_bytes()
    save_file(perturbed(MODEL, 9).state_dict(), checkpoint)
    with pytest.raises(ExportError, match="exists already; replace it with `overwrite=True`"):
        export(checkpoint, MODEL, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    export(checkpoint, MODEL, folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == [MODEL, checkpoint.name]


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
@pytest.mark.parametrize(
    ("umask", "folder_mode", "file_mode"), [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640)]
)
def test_others_may_read_as_the_umask_allows(tmp_path, umask, folder_mode, file_mode):
    before = os.umask(umask)
    try:
        folder, _ = exported(tmp_path / "out")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == folder_mode
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {file_mode}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    # the package's name `export` is the function
    monkeypatch.setattr(sys.modules["timm_mvhybrid.export.export"], "write_card", fail)
    with pytest.raises(error):
        exported(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{MODEL}.checkpoint.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_killed_export_leaves_no_folder_of_that_name(tmp_path):
    save_file(perturbed(MODEL).state_dict(), tmp_path / "w.safetensors")
    code = (
        "import sys, time, timm_mvhybrid.hub\n"
        "e = sys.modules['timm_mvhybrid.export.export']\n"
        "e.verify = lambda folder: (print('written', flush=True), time.sleep(60))\n"
        f"e.export({str(tmp_path / 'w.safetensors')!r}, {MODEL!r}, {str(tmp_path / 'out')!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "written\n"
            start = time.monotonic()
        finally:
            process.kill()
    assert time.monotonic() - start < 30
    assert not (tmp_path / "out").exists()


def test_verification_demands_what_an_export_has(tmp_path):
    folder, _ = exported(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    del config["timm_mvhybrid"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="states no sha256"):
        verify(folder)
    save_file(tensors, folder / "model.safetensors")
    timm.create_model(f"local-dir:{folder}", pretrained=True)
    with pytest.raises(ExportError, match="states no sha256"):
        verify(folder)


def card_of(folder):
    text = (folder / "README.md").read_text()
    _, block, body = text.split("---\n", 2)
    return yaml.safe_load(block), body


def test_the_card_is_written_from_the_runs_records(tmp_path, run):
    export(run, MODEL, tmp_path / "out", dtype="bfloat16")
    block, body = card_of(tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.to_dict() == block
    assert block["library_name"] == "timm"
    assert block["license"] == "apache-2.0"
    assert block["datasets"] == ["our-lab/patches"]
    assert {"timm", "pathology"} <= set(block["tags"])
    for text in (
        "import timm_mvhybrid  # registers the models",
        "2 × MambaVision + EinFFT, 2 × attention + MLP",
        "| obtained | own hospital, ethics 1/23 |",
        "| optimizer.lr | 0.002 |",
        "| pearson r | 0.4321 | – | HEST-Bench | not recorded | PCA 256 + ridge, LOSO |",
        "| AUC | 0.9 | – | ours | not recorded | not recorded |",
        "Step of the checkpoint: 20.",
        "| gpus | 24 |",
        "not a medical device",
        "2508.00383",
        "2% is the bound",
    ):
        assert text in body
    # what was logged behind the exported step is not this checkpoint's
    assert "| loss | 8.0 |" in body
    assert "| loss | 7.0 |" not in body


def test_the_card_says_what_is_not_recorded(tmp_path):
    folder, _ = exported(tmp_path)
    block, body = card_of(folder)
    assert "datasets" not in block
    for text in (
        "| name | not recorded |",
        "| obtained | not recorded |",
        "Configuration: not recorded.",
        "Downstream results: not recorded.",
        "Training metrics: not recorded.",
        "Step of the checkpoint: not recorded.",
        "Environment: not recorded.",
    ):
        assert text in body


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "evaluations.json", "environment.json"])
def test_damaged_records_are_named(tmp_path, run, name):
    (run / name).write_text("{\n{}\n")
    with pytest.raises(ExportError, match=rf"{name}: .*repair it, or move it away"):
        export(run, MODEL, tmp_path / "out")


def test_the_python_of_the_card_runs(tmp_path):
    folder, source = exported(tmp_path)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    image = torch.randn(1, 3, 128, 128)
    names = {"images": image}
    with torch.no_grad():
        exec(code.replace("hf-hub:ORGANISATION/NAME", f"local-dir:{folder}"), names)
        assert torch.equal(names["features"], source(image))


LIGHT = """
import sys
import timm, torch
import timm_mvhybrid
image = torch.linspace(-1, 1, 3 * 128 * 128).view(1, 3, 128, 128)
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        torch.save(model(image), f"{folder}.pt")
heavy = {"lightly", "openslide", "tiffslide", "h5py", "timm_mvhybrid.hub", "timm_mvhybrid.data"} & set(sys.modules)
assert not heavy, heavy
assert not torch.cuda.is_initialized()
"""


@pytest.fixture(scope="module")
def consumed(tmp_path_factory):
    """What another process makes of an export of each precision; the folder, and the model that was exported."""
    exports = {
        dtype: exported(tmp_path_factory.mktemp(dtype), dtype=dtype) for dtype in ("float32", "bfloat16")
    }
    command = [sys.executable, "-c", LIGHT, *(str(folder) for folder, _ in exports.values())]
    subprocess.run(command, check=True, timeout=240, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    return exports


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_light_consumer_needs_nothing_but_timm(consumed, dtype):
    folder, source = consumed[dtype]
    found = torch.load(f"{folder}.pt", weights_only=True)
    image = torch.linspace(-1, 1, 3 * 128 * 128).view(1, 3, 128, 128)
    with torch.no_grad():
        expected = source(image)
    error = float((found - expected).norm() / expected.norm())
    assert error < (1e-5 if dtype == "float32" else BFLOAT16_BOUND)


def test_the_card_shows_no_folders_of_the_machine_and_no_events_as_metrics(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    config["output"] = "/home/someone/runs/secret"
    config["data"].update(sources=["/home/someone/slides/a.svs", "b.h5"], num_workers=3, obtained=None)
    config["model"] = {"weights": "C:\\Users\\someone\\weights.pth"}
    (run / "config.json").write_text(json.dumps(config))
    (run / "environment.json").write_text(json.dumps({"command": ["/home/someone/bin/train", "--x"]}))
    with (run / "metrics.jsonl").open("w") as stream:
        for line in (
            {"step": 20, "loss": 7.25},
            {"step": 20, "probe/knn_accuracy": 0.625},
            {"step": 20, "event": "corrupt", "name": "/home/someone/x.png"},
        ):
            stream.write(json.dumps(line) + "\n")
    export(run, MODEL, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "someone" not in card
    assert "secret" not in card
    assert '["a.svs", "b.h5"]' in card
    assert "| obtained | not recorded |" in card
    assert "num_workers" not in card
    assert "| loss | 7.25 |" in card
    assert "| probe/knn_accuracy | 0.625 |" in card
    assert "weights.pth" in card
