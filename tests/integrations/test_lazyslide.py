import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from support.exports import exported
from torch import nn

from timm_mvhybrid.integrations import lazyslide
from timm_mvhybrid.models import MODEL_NAMES
from timm_mvhybrid.runtime.errors import MissingPackageError, ParameterError

MODEL = "mvhybrid_small_patch16_256"


class TimmViTModel:
    """Builds its model as lazyslide 0.13 does."""

    def __init__(self, name, token=None, compile=False, compile_kws=None, **kwargs):
        self.token = token
        self.model = timm.create_model(name, **{"pretrained": True, "num_classes": 0, **kwargs}).eval()
        self.img_size = self.model.patch_embed.img_size
        self.grid_size = self.model.patch_embed.grid_size


@pytest.fixture
def registry(monkeypatch):
    """Stands in for lazyslide's list of models."""
    models = {}

    def register(*, key, task, **card):
        def decorate(model_class):
            assert key not in models, "lazyslide warns of a name given twice"
            models[key] = model_class
            model_class.task, model_class.card = task, card
            return model_class

        return decorate

    module = SimpleNamespace(
        MODEL_REGISTRY=models,
        ModelTask=SimpleNamespace(vision="vision"),
        TimmViTModel=TimmViTModel,
        register=register,
    )
    monkeypatch.setitem(sys.modules, "lazyslide_models", module)
    return models


def test_registers_six_backbones_once(registry):
    assert lazyslide.register() == MODEL_NAMES
    lazyslide.register()
    assert set(registry) == set(MODEL_NAMES)
    for name, model_class in registry.items():
        assert model_class.__name__ == name
        assert model_class.task == "vision"
        assert model_class.card["encode_dim"] == timm.create_model(name, device="meta").num_features


def test_model_knows_its_name_and_size(registry):
    lazyslide.register()
    card = registry[MODEL](pretrained=False, img_size=128, token="hf_x")
    assert (card.name, card.token) == (MODEL, "hf_x")
    assert card.img_size == (128, 128)
    assert card.grid_size == (8, 8)
    assert isinstance(card.model, nn.Module)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_model_path_is_loaded(kind, registry, tmp_path):
    lazyslide.register()
    folder, expected = exported(tmp_path, MODEL)
    card = registry[MODEL](model_path=folder if kind == "folder" else str(folder / "model.safetensors"))
    assert all(map(torch.equal, card.model.state_dict().values(), expected.state_dict().values()))


def test_folder_of_another_backbone_is_refused(registry, tmp_path):
    lazyslide.register()
    folder, _ = exported(tmp_path, "vit12_small_patch16_256")
    with pytest.raises(
        ParameterError, match=r"holds the backbone 'vit12_small_patch16_256', not 'mvhybrid_small"
    ):
        registry[MODEL](model_path=folder)


def test_missing_weights_are_named(registry, tmp_path):
    lazyslide.register()
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors: no such file or folder"):
        registry[MODEL](model_path=tmp_path / "absent.safetensors")


def test_missing_lazyslide_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lazyslide_models", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'lazyslide>=0\.13'"):
        lazyslide.register()
