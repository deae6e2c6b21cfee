"""What we register with AtlasPatch, seen by a stand-in; the real one runs in tests/pipelines."""

import importlib.util
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_mvhybrid.integrations import atlas_patch
from timm_mvhybrid.models import MODEL_NAMES
from timm_mvhybrid.runtime.errors import MissingPackageError, ParameterError

CPU = torch.device("cpu")


@dataclass
class CustomEncoderComponents:
    model: torch.nn.Module
    preprocess: object
    forward_fn: object = None


@pytest.fixture
def registry(monkeypatch):
    """A stand-in for AtlasPatch; what it registers is found in a dictionary by name."""
    names = (
        "atlas_patch",
        "atlas_patch.models",
        "atlas_patch.models.patch",
        "atlas_patch.models.patch.custom",
    )
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    custom = sys.modules[names[-1]]
    custom.CustomEncoderComponents = CustomEncoderComponents
    custom.register_custom_encoder = lambda *, registry, name, **options: registry.update({name: options})
    return {}


def test_the_file_is_a_plugin(registry):
    # AtlasPatch runs the file by its path, as no part of a package
    spec = importlib.util.spec_from_file_location("plugin", atlas_patch.__file__)
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    plugin.register_feature_extractors(registry=registry, device=CPU, dtype=torch.float16, num_workers=2)
    assert tuple(registry) == MODEL_NAMES
    assert all(options["embedding_dim"] == 384 for options in registry.values())
    assert all(options["num_workers"] == 2 for options in registry.values())
    assert all(options["dtype"] == torch.float16 for options in registry.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_ones_own(registry, tmp_path, dtype):
    torch.manual_seed(3)
    model = timm.create_model("test_mvhybrid").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    options = dict(checkpoint=tmp_path / "weights.pth")
    atlas_patch.register_model(registry, "mine", "test_mvhybrid", CPU, dtype, **options)
    parts = registry["mine"]["loader"](CPU, dtype)
    assert registry["mine"]["embedding_dim"] == 64
    assert not parts.model.training
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8))
    images = parts.preprocess(image)[None]
    with torch.no_grad():
        ours, theirs = model(images), parts.model(images.to(dtype)).float()
    assert torch.nn.functional.cosine_similarity(ours, theirs).item() > (
        0.999 if dtype != torch.float32 else 0.9999999
    )


def test_clear_errors(registry, monkeypatch):
    with pytest.raises(ParameterError, match="exclude each other"):
        atlas_patch.register_model(
            registry, "x", "test_mvhybrid", CPU, torch.float32, pretrained=True, checkpoint="weights.pth"
        )
    monkeypatch.setitem(sys.modules, "atlas_patch", None)
    monkeypatch.setitem(sys.modules, "atlas_patch.models.patch.custom", None)
    with pytest.raises(MissingPackageError, match="pip install atlas-patch"):
        atlas_patch.register_model(registry, "x", "test_mvhybrid", CPU, torch.float32)
