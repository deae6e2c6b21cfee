"""What we put into TIAToolbox's dictionary, seen by a stand-in; the real one runs in tests/pipelines."""

import pickle
import sys
import types

import numpy as np
import pytest
import timm
import torch
from torch import nn

from timm_mvhybrid.integrations import tiatoolbox
from timm_mvhybrid.models import HE_MEAN, HE_STD, MODEL_NAMES
from timm_mvhybrid.runtime.errors import MissingPackageError

MODULES = ("tiatoolbox", "tiatoolbox.models", "tiatoolbox.models.architecture")


@pytest.fixture
def vanilla(monkeypatch):
    """A stand-in for TIAToolbox's module of architectures: only what is in the dictionary stays whole."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module = types.ModuleType("tiatoolbox.models.architecture.vanilla")
    module.timm_arch_dict = {"UNI": {"model": "hf-hub:MahmoodLab/UNI"}}

    class TimmBackbone(nn.Module):
        def __init__(self, backbone, *, pretrained):
            super().__init__()
            config = dict(module.timm_arch_dict[backbone])
            self.feat_extract = timm.create_model(config.pop("model"), pretrained=pretrained, **config)

    module.TimmBackbone = TimmBackbone
    monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules["tiatoolbox.models.architecture"].vanilla = module
    return module


def test_register_keeps_what_is_there(vanilla):
    vanilla.timm_arch_dict["test_mvhybrid"] = mine = {"model": "test_mvhybrid", "global_pool": "avg"}
    tiatoolbox.register()
    tiatoolbox.register()
    assert set(MODEL_NAMES) | {"UNI"} <= set(vanilla.timm_arch_dict)
    assert vanilla.timm_arch_dict["test_mvhybrid"] is mine
    assert vanilla.timm_arch_dict[MODEL_NAMES[0]] == {"model": MODEL_NAMES[0], "num_classes": 0}


def test_backbone_is_whole_and_normalises(vanilla):
    model = tiatoolbox.backbone("test_mvhybrid", global_pool="avg")
    assert model.feat_extract.global_pool == "avg"
    assert not model.training
    assert vanilla.timm_arch_dict["test_mvhybrid"] == {"model": "test_mvhybrid", "num_classes": 0}
    with torch.no_grad():
        assert model.feat_extract(torch.rand(2, 3, 224, 224)).shape == (2, 64)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 4), np.uint8)
    expected = (pixels[..., :3] / 255 - HE_MEAN) / HE_STD
    np.testing.assert_allclose(pickle.loads(pickle.dumps(model.preproc_func))(pixels), expected, atol=1e-5)


def test_a_failure_leaves_the_dictionary_as_it_was(vanilla):
    vanilla.timm_arch_dict["test_mvhybrid"] = {"model": "test_mvhybrid", "global_pool": "max"}
    with pytest.raises(ValueError, match="num_heads"):
        tiatoolbox.backbone("test_mvhybrid", num_heads=7)
    assert vanilla.timm_arch_dict["test_mvhybrid"] == {"model": "test_mvhybrid", "global_pool": "max"}


def test_pixels_normalised_before_are_refused():
    with pytest.raises(ValueError, match="the patch is float32; expected uint8"):
        tiatoolbox.preproc_func("test_mvhybrid")(np.zeros((8, 8, 3), np.float32))


@pytest.mark.parametrize("is_old", [False, True])
def test_without_tiatoolbox_or_with_an_old_one(vanilla, monkeypatch, is_old):
    if is_old:
        del vanilla.timm_arch_dict
    else:
        monkeypatch.setitem(sys.modules, "tiatoolbox", None)
        monkeypatch.setitem(sys.modules, "tiatoolbox.models", None)
        monkeypatch.setitem(sys.modules, "tiatoolbox.models.architecture", None)
        monkeypatch.setitem(sys.modules, "tiatoolbox.models.architecture.vanilla", None)
    for call in (tiatoolbox.register, lambda: tiatoolbox.backbone("test_mvhybrid")):
        with pytest.raises(MissingPackageError, match=r"pip install 'tiatoolbox>=2\.1'"):
            call()
