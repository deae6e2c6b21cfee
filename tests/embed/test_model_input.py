from importlib import import_module

import pytest
import timm
import torch
from PIL import Image
from support.hest_tasks import write_task

from timm_mvhybrid.cli import main
from timm_mvhybrid.embed.model_input import choose_device, choose_input_size
from timm_mvhybrid.evaluate import (
    Backbone,
    EmbeddingOptions,
    EvaluationError,
    ExpressionOptions,
    PatchTaskOptions,
    evaluate_classification,
    evaluate_expression,
    evaluate_retrieval,
)


@pytest.mark.parametrize(
    ("name", "patch_size_px", "input_size", "expected"),
    [
        ("test_mvhybrid", 256, "auto", 256),
        ("test_mvhybrid", 224, "auto", 224),
        ("test_mvhybrid", 250, "auto", 128),
        ("test_mvhybrid", None, "auto", 128),
        ("test_mvhybrid", 256, 64, 64),
        ("vit_tiny_patch16_224", 256, "auto", 224),
        ("vit_tiny_patch16_224", 224, "auto", 224),
        ("vit_tiny_patch16_224", 256, 224, 224),
        ("test_resnet", 250, "auto", 250),
        ("maxvit_rmlp_pico_rw_256", 224, "auto", 256),
    ],
)
def test_input_size(name, patch_size_px, input_size, expected):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    assert choose_input_size(model, patch_size_px, input_size) == (expected, expected)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_patch16_224", 256), ("test_mvhybrid", 250), ("test_mvhybrid", 0)]
)
def test_sizes_a_model_does_not_take(name, size):
    model = timm.create_model(name, num_classes=0)
    with pytest.raises(
        EvaluationError, match=rf"does not take inputs of {size} px; it was made for (224|128) px"
    ):
        choose_input_size(model, 256, size)


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(
        EvaluationError,
        match=r"device 'cuda:99' is not available \(\d+ CUDA devices found\); use auto.* cpu",
    ):
        choose_device("cuda:99")
    with pytest.raises(EvaluationError, match=r"unknown device 'gpu'; use auto.* cpu"):
        choose_device("gpu")


NOWHERE = (
    *(
        "xpu",
        "hpu",
        "xla",
        "xla:1",
        "meta",
        "vulkan",
        "mtia",
        "ipu",
        "lazy",
        "privateuseone",
        "mkldnn",
        "fpga",
        "hip",
    ),
    *("cuda:99", "cuda:-1", "cuda:x", "cuda:", "cuda0", "gpu", "CPU", "cpu ", "", "auto:0", "none"),
)


@pytest.mark.parametrize("name", NOWHERE)
def test_devices_that_are_not_here_are_named_with_some_that_are(name, recwarn):
    if name.startswith(("xpu", "hpu", "mtia", "hip")) and torch.accelerator.is_available():
        pytest.skip("an accelerator that may be of this kind is here")
    with pytest.raises(EvaluationError) as caught:
        choose_device(name)
    message = str(caught.value)
    assert f"device '{name}'" in message
    assert "\n" not in message
    assert len(message) < 300
    named = message.rsplit("; use ", 1)[1].replace(" or ", ", ").split(", ")
    assert {"auto", "cpu"} <= set(named)
    for working in named:
        assert choose_device(working)
    assert not recwarn.list


def test_other_devices_are_refused_before_models_are_built_or_files_are_read(tmp_path, monkeypatch):
    def too_late(*_, **__):
        raise AssertionError("long work has begun")

    write_task(tmp_path, num_samples=2)
    options = EmbeddingOptions(device="meta")
    backbone = Backbone(model=torch.nn.Identity(), name="identity")
    for module in ("evaluate.expression.task", "data.source"):
        monkeypatch.setattr(import_module(f"timm_mvhybrid.{module}"), "file_sha256", too_late)
    with pytest.raises(EvaluationError, match="device 'meta' is not available"):
        evaluate_expression(tmp_path, [backbone], ExpressionOptions(embedding=options))
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / label / "x.png")
    for evaluate in (evaluate_classification, evaluate_retrieval):
        with pytest.raises(EvaluationError, match="device 'meta' is not available"):
            evaluate(tmp_path / "images", [backbone], PatchTaskOptions(embedding=options))


@pytest.mark.parametrize("device", ["meta", "hpu", "gpu", "cuda:99"])
@pytest.mark.parametrize(
    "command",
    [
        ["embed", "PATCHES", "--output", "o.h5"],
        ["evaluate", "expression", "TASK", "--output", "out"],
        ["evaluate", "classification", "PATCHES", "--output", "out"],
        ["evaluate", "retrieval", "PATCHES", "--output", "out"],
    ],
)
def test_every_command_names_the_device_and_exits_with_1(device, command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # neither the input nor the model is there: the device is looked at first
    assert main([*command, "--model", "no_such_model", "--device", device]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert f"device '{device}'" in lines[0]
    assert "cpu" in lines[0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
