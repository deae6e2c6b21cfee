import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

import timm_mvhybrid
from timm_mvhybrid.integrations import kaiko_eva
from timm_mvhybrid.models import HE_MEAN, HE_STD, MODEL_NAMES
from timm_mvhybrid.runtime.errors import MissingPackageError, ParameterError

EXAMPLES = Path(__file__).parents[2] / "examples" / "pipelines"
MODEL = "mvhybrid_small_patch16_256"


def values(tree, key):
    """Every value of a key in nested dictionaries and lists."""
    if isinstance(tree, dict):
        found = [tree[key]] if key in tree else []
        return found + [value for child in tree.values() for value in values(child, key)]
    return [value for child in tree for value in values(child, key)] if isinstance(tree, list) else []


def default(text):
    """What ``${oc.env:NAME, default}`` stands for where the variable is not set."""
    return yaml.safe_load(text.removesuffix("}").partition(", ")[2])


@pytest.fixture
def commands(monkeypatch):
    """Stands in for eva's command line, and notes what it was started with."""
    calls = []

    def cli():
        names = ("MODEL_NAME", "MODEL_EXTRA_KWARGS", "RESIZE_DIM")
        calls.append((sys.argv, {name: os.environ.get(name) for name in names}))

    module = ModuleType("eva.core.cli")
    module.cli = cli
    monkeypatch.setitem(sys.modules, "eva.core.cli", module)
    monkeypatch.setattr(sys, "argv", ["kaiko_eva.py"])
    for name in (
        "MODEL_NAME",
        "MODEL_EXTRA_KWARGS",
        "IN_FEATURES",
        "RESIZE_DIM",
        "NORMALIZE_MEAN",
        "NORMALIZE_STD",
    ):
        # set first, so that what main sets is undone behind the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return calls


@pytest.mark.parametrize("task", kaiko_eva.TASKS)
def test_configuration_fits_the_backbones(task):
    path = kaiko_eva.configuration(task)
    assert (EXAMPLES / path.name).read_bytes() == path.read_bytes()
    config = yaml.safe_load(path.read_text())
    assert values(config, "path") == ["timm_mvhybrid.create_model"]
    [arguments] = values(config, "arguments")
    assert default(arguments["model_name"]) == MODEL
    model = timm_mvhybrid.create_model(MODEL, device="meta")
    assert [default(value) for value in values(config, "in_features")] == [model.num_features]
    transforms = values(config, "transforms")
    assert len(transforms) >= 2
    for transform in transforms:
        options = transform["init_args"]
        assert default(options["size"]) == model.pretrained_cfg["input_size"][1]
        assert tuple(default(options["mean"])) == HE_MEAN
        assert tuple(default(options["std"])) == HE_STD


def test_segmentation_asks_for_a_feature_map():
    config = yaml.safe_load(kaiko_eva.configuration("segmentation").read_text())
    [arguments] = values(config, "arguments")
    options = {name: arguments[name] for name in ("features_only", "out_indices")}
    model = timm_mvhybrid.create_model(MODEL, pretrained_cfg={}, **options)
    [features] = model(torch.zeros(1, 3, 32, 64))
    assert features.shape == (1, 384, 2, 4)


def test_unknown_task_is_named():
    with pytest.raises(ParameterError, match=r"`task` is 'detection', .*classification, segmentation"):
        kaiko_eva.configuration("detection")


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_environment_describes_the_backbone(name):
    variables = kaiko_eva.environment(name)
    assert variables["MODEL_NAME"] == f"timm/{name}"
    assert json.loads(variables["MODEL_EXTRA_KWARGS"]) == {"pretrained": True}
    assert (variables["IN_FEATURES"], variables["RESIZE_DIM"]) == ("384", "256")
    assert tuple(json.loads(variables["NORMALIZE_MEAN"])) == HE_MEAN
    assert tuple(json.loads(variables["NORMALIZE_STD"])) == HE_STD


def test_environment_names_a_file_of_weights():
    variables = kaiko_eva.environment(MODEL, "some where/weights.safetensors")
    assert json.loads(variables["MODEL_EXTRA_KWARGS"]) == {
        "checkpoint_path": "some where/weights.safetensors"
    }


def test_environment_refuses_other_models():
    with pytest.raises(
        ValueError, match=r"`model_name` is 'resnet18', which is not a backbone of this package"
    ):
        kaiko_eva.environment("resnet18")


def test_command_sets_what_is_not_set(commands, monkeypatch):
    monkeypatch.setenv("MODEL_NAME", f"timm/{MODEL}")
    monkeypatch.setenv("RESIZE_DIM", "224")
    assert kaiko_eva.main(["predict", "--config", "bach.yaml"]) == 0
    [(arguments, variables)] = commands
    assert arguments == ["eva", "predict", "--config", "bach.yaml"]
    assert variables["RESIZE_DIM"] == "224"
    assert json.loads(variables["MODEL_EXTRA_KWARGS"]) == {"pretrained": True}


def test_command_leaves_other_models_alone(commands, monkeypatch):
    monkeypatch.setenv("MODEL_NAME", "timm/resnet18")
    kaiko_eva.main(["fit"])
    assert commands[0][1] == {"MODEL_NAME": "timm/resnet18", "MODEL_EXTRA_KWARGS": None, "RESIZE_DIM": None}


def test_command_prints_the_path_of_a_configuration(capsys, commands):
    assert kaiko_eva.main(["--configuration", "segmentation"]) == 0
    assert capsys.readouterr().out == f"{kaiko_eva.configuration('segmentation')}\n"
    assert not commands


def test_missing_eva_is_named(commands, monkeypatch):
    monkeypatch.setitem(sys.modules, "eva.core.cli", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'kaiko-eva\[vision\]'"):
        kaiko_eva.main(["fit"])
