"""What we register with slide2vec, seen by a stand-in; the real one runs in tests/pipelines."""

import re
import sys
import types
from pathlib import Path

import pytest
import timm
import torch

from timm_mvhybrid.integrations import slide2vec
from timm_mvhybrid.models import MODEL_NAMES
from timm_mvhybrid.runtime.errors import MissingPackageError, ParameterError

ROOT = Path(__file__).parents[2]
WITHOUT_ATTENTION = {"vim_einfft_small_patch16_256", "hydra_einfft_small_patch16_256"}


class TileEncoder:
    def encode_tiles_attention(self, batch, *, blocks=(-1,), include_registers=False):
        raise NotImplementedError


class TimmTileEncoder(TileEncoder):
    def __init__(self, model_name, **options):
        self.options = options
        self._model = timm.create_model(
            model_name, **{**options, "num_classes": 0, "pretrained": False}
        ).eval()

    def encode_tiles_attention(self, batch, *, blocks=(-1,), include_registers=False):
        return blocks


@pytest.fixture
def registered(monkeypatch):
    """A stand-in for slide2vec.encoders; returns {preset: (class, metadata)}."""
    found = {}

    def register_encoder(name, **metadata):
        return lambda encoder: found.setdefault(name, (encoder, metadata))[0]

    module = types.ModuleType("slide2vec.encoders")
    module.TileEncoder, module.TimmTileEncoder = TileEncoder, TimmTileEncoder
    module.register_encoder = register_encoder
    monkeypatch.setitem(sys.modules, "slide2vec", types.ModuleType("slide2vec"))
    monkeypatch.setitem(sys.modules, "slide2vec.encoders", module)
    return found


def test_the_entry_point_is_declared():
    group = re.search(
        r'^\[project\.entry-points\."slide2vec\.encoders"\]\n((?:.+\n)+)',
        (ROOT / "pyproject.toml").read_text(),
        re.M,
    )
    assert 'timm_mvhybrid = "timm_mvhybrid.integrations.slide2vec:register"' in group[1]


def test_all_six_are_registered(registered):
    slide2vec.register()
    assert tuple(registered) == MODEL_NAMES
    for name, (encoder, metadata) in registered.items():
        model = timm.create_model(name, device="meta")
        assert metadata["output_variants"] == {
            "cls": {"encode_dim": 384},
            "cls_patch_mean": {"encode_dim": 768},
        }
        assert metadata["input_size"] == 256
        assert metadata["patch_size"] == model.patch_embed.patch_size == (16, 16)
        assert metadata["source"] == model.pretrained_cfg["hf_hub_id"]
        lacks_attention = encoder.encode_tiles_attention is TileEncoder.encode_tiles_attention
        assert lacks_attention == (name in WITHOUT_ATTENTION)


@pytest.fixture
def own(registered, tmp_path):
    torch.manual_seed(0)
    torch.save(timm.create_model("test_mvhybrid").state_dict(), tmp_path / "weights.pth")
    slide2vec.register_checkpoint("mine", tmp_path / "weights.pth", "test_mvhybrid")
    return registered["mine"][0]


def test_outputs_are_the_class_token_and_the_mean(own, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_mvhybrid").eval()
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        tokens = model.forward_features(images)
        cls, both = (own(output_variant=variant).encode_tiles(images) for variant in (None, "cls_patch_mean"))
    torch.testing.assert_close(cls, tokens[:, 0])
    torch.testing.assert_close(both, torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    assert own(output_variant="cls_patch_mean").encode_dim == 128
    with pytest.raises(ParameterError, match="`output_variant` is 'patches'"):
        own(output_variant="patches")


@pytest.mark.parametrize("block", [0, 1, -3, -4])
def test_attention_of_a_scan_is_refused(own, block):
    with pytest.raises(ParameterError, match=f"names {block}; of the 4 blocks .* choose from 2 to 3"):
        own().encode_tiles_attention(None, blocks=(3, block))


def test_attention_of_the_others_is_left_to_slide2vec(own):
    # out of range, too: slide2vec has its own words for that
    assert own().encode_tiles_attention(None, blocks=(2, 3, -1, -2, 4, -5)) == (2, 3, -1, -2, 4, -5)


def test_published_weights_are_asked_for(registered, monkeypatch):
    slide2vec.register()
    encoder = registered["vit12_small_patch16_256"][0]()
    assert encoder.options["pretrained"] is True


def test_other_weights_are_another_source(registered, tmp_path):
    for preset, seed in (("one", 1), ("two", 2)):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_mvhybrid").state_dict(), tmp_path / "weights.pth")
        slide2vec.register_checkpoint(preset, tmp_path / "weights.pth", "test_mvhybrid")
    one, two = (registered[preset][1]["source"] for preset in ("one", "two"))
    assert one != two
    assert one.startswith("test_mvhybrid weights.pth sha256:")


def test_clear_errors(registered, tmp_path):
    with pytest.raises(ParameterError, match="slide2vec looks for 'mine'"):
        slide2vec.register_checkpoint("Mine", tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match="no such checkpoint file"):
        slide2vec.register_checkpoint("mine", tmp_path / "weights.pth")
    (tmp_path / "weights.pth").touch()
    with pytest.raises(ParameterError, match="`global_pool` is 'avg'"):
        slide2vec.register_checkpoint("mine", tmp_path / "weights.pth", global_pool="avg")


def test_without_slide2vec(monkeypatch):
    monkeypatch.setitem(sys.modules, "slide2vec", None)
    monkeypatch.setitem(sys.modules, "slide2vec.encoders", None)
    with pytest.raises(MissingPackageError, match="pip install 'slide2vec"):
        slide2vec.register()
