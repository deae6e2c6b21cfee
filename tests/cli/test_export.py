"""``timm-mvhybrid export-onnx``: what it writes, what it prints, and how it fails."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import save_file

from timm_mvhybrid.cli import main
from timm_mvhybrid.evaluate import load_backbone

needs_onnx = pytest.mark.skipif(not hasattr(torch.onnx, "ops"), reason="ONNX export needs torch 2.8 or newer")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(*arguments, model="test_vit12"):
    return main(["export-onnx", "--model", model, "--output", "model.onnx", "--image-size", "32", *arguments])


@needs_onnx
def test_random_weights_are_said_to_be_random(folder, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert export("--seed", "3") == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "warning: the weights are random, so the features carry no meaning; give --checkpoint FILE or --pretrained"
    ]
    assert printed.out.count("\n") == 1
    summary = json.loads(printed.out)
    assert summary["output"] == "model.onnx"
    assert summary["image_size_px"] == [32, 32]
    assert summary["opset"] == 20
    assert summary["num_bytes"] == (folder / "model.onnx").stat().st_size
    assert summary["largest_error"] < 1e-4
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    stated = session.get_modelmeta().custom_metadata_map
    assert stated["weights"] == stated["weights_sha256"] == "random"
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (features,) = session.run(["features"], {"image": images.numpy()})
    with torch.no_grad():
        expected = load_backbone("test_vit12", seed=3).model(images)
    torch.testing.assert_close(torch.from_numpy(features), expected, rtol=1e-4, atol=1e-5)


@needs_onnx
def test_options_reach_the_library(folder, capsys):
    pytest.importorskip("onnxruntime")
    backbone = load_backbone("test_vit12", seed=5)
    save_file(backbone.model.state_dict(), "mine.safetensors")
    (folder / "model.onnx").write_text("old")
    arguments = "--checkpoint mine.safetensors --tokens --normalize --opset 21 --skip-comparison --overwrite"
    assert export(*arguments.split()) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    summary = json.loads(printed.out)
    assert summary["opset"] == 21
    assert summary["output_shape"] == [5, 64]
    assert summary["largest_error"] is None
    content = (folder / "model.onnx").read_bytes()
    assert b"mine.safetensors" in content
    assert b"in the graph" in content


@needs_onnx
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "100"], "--image-size is (100, 100); it must be a multiple of `patch_size`"),
        (["--opset", "12"], "--opset is 12; it must be at least 20"),
        (["--checkpoint", "missing.pth"], "missing.pth: no such checkpoint file"),
        (["--output", "taken.onnx"], "taken.onnx: exists already; replace it with --overwrite"),
        (["--output", "nowhere/model.onnx"], "the output folder nowhere does not exist; create it first"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(folder, capsys, arguments, message):
    pytest.importorskip("onnxruntime")
    (folder / "taken.onnx").write_text("taken")
    assert export(*arguments) == 1
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert printed.out == ""
    assert [path.name for path in folder.iterdir()] == ["taken.onnx"]
    assert (folder / "taken.onnx").read_text() == "taken"


@needs_onnx
def test_an_interruption_leaves_nothing(folder, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")

    def interrupt(*_):
        assert any(path.name.endswith(".tmp") for path in folder.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("timm_mvhybrid.models.onnx_export._compare", interrupt)
    assert export() == 130
    assert "no output was written" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@needs_onnx
def test_unknown_models_are_named(folder, capsys):
    pytest.importorskip("onnxruntime")
    assert export(model="test_vit13") == 1
    message = capsys.readouterr().err
    assert "unknown model 'test_vit13'; did you mean" in message
    assert "test_vit12" in message


def test_a_missing_package_is_named_before_a_model_is_built(folder, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    assert export(model="no_such_model") == 1
    assert capsys.readouterr().err == (
        "error: the export needs onnxscript; install with pip install 'timm-mvhybrid[onnx]'\n"
    )


def test_two_kinds_of_weights_are_wrong_usage(folder, capsys):
    assert export("--pretrained", "--checkpoint", "mine.pth") == 2
    assert "exclude each other" in capsys.readouterr().err


def test_help_states_units_and_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["export-onnx", "--help"])
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("NAME", "--output FILE.onnx", "--image-size auto|PX", "px", "(default: 20)", "1e-4"):
        assert text in printed
