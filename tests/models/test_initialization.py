"""Initial weights have the distribution of the published models'."""

import json
import math

import pytest
import timm
import torch
from support.goldens import FOLDER

from timm_mvhybrid.layers import HydraMixer
from timm_mvhybrid.models import checkpoint_filter_fn

STATISTICS = json.loads((FOLDER / "init_stats.json").read_text())


def assert_same_distribution(value, statistics, key):
    """Compares moments; a sample's deviation from them shrinks with its size."""
    assert list(value.shape) == statistics["shape"], key
    value = value.double()
    spread, size = statistics["std"], value.numel()
    tolerance = 8 * spread / math.sqrt(size) + 1e-7
    assert value.mean().item() == pytest.approx(statistics["mean"], abs=tolerance), key
    assert value.std(correction=0).item() == pytest.approx(spread, abs=tolerance), key
    if size > 1000:
        reach = statistics["max"] - statistics["min"]
        assert value.min().item() == pytest.approx(statistics["min"], abs=0.3 * reach + 1e-7), key
        assert value.max().item() == pytest.approx(statistics["max"], abs=0.3 * reach + 1e-7), key


def test_mv_hybrid():
    torch.manual_seed(0)
    model = timm.create_model("mvhybrid_small_patch16_256", depth=2, mask_token=True)
    expected = STATISTICS["MV_Hybrid depth2 (official init)"]
    # the conversion of names is the checkpoints'; each parameter stands for its statistics
    names = {
        key: torch.empty(stats["shape"]).fill_(index) for index, (key, stats) in enumerate(expected.items())
    }
    originals = list(expected)
    converted = checkpoint_filter_fn(names, model)
    assert converted.keys() == model.state_dict().keys()
    for key, marker in converted.items():
        original = originals[int(marker.flatten()[0])]
        assert_same_distribution(model.state_dict()[key], expected[original], key)


def test_vim():
    torch.manual_seed(0)
    model = timm.create_model("vim_einfft_small_patch16_256", channel_mixer="none")
    expected = STATISTICS["Vim-small depth24 layer0 + embed"]
    state = model.state_dict()
    checked = 0
    for original, stats in expected.items():
        key = original.replace("layers.0.norm.", "blocks.0.norm1.").replace("layers.0.", "blocks.0.")
        key = key.replace("norm_f.", "norm.")
        assert_same_distribution(state[key], stats, key)
        checked += 1
    assert checked > 15


def test_hydra_alone():
    torch.manual_seed(0)
    state = HydraMixer(384).state_dict()
    expected = STATISTICS["Hydra(384,d_state=64,headdim=64) alone"]
    assert state.keys() == expected.keys()
    for key, stats in expected.items():
        assert_same_distribution(state[key], stats, key)


def test_textbook_scheme_keeps_mambas_step_sizes():
    official = timm.create_model("test_mvhybrid")
    textbook = timm.create_model("test_mvhybrid", init="mamba")
    assert (official.blocks[0].mixer.dt_proj.bias == 0).all()
    steps = torch.nn.functional.softplus(textbook.blocks[0].mixer.dt_proj.bias)
    assert steps.max() < 0.11
    torch.manual_seed(0)
    vim = timm.create_model("test_vim_einfft", init="mamba")
    assert (vim.blocks[0].mixer.dt_proj_b.bias != 0).all()
    # attention starts alike in both
    assert textbook.blocks[-1].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
