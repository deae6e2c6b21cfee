"""Low-rank adapters: where they may be, that they learn, merge, and know their base."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from timm_mvhybrid.finetune import (
    FinetuneError,
    STModel,
    load_adapters,
    lora,
    merge,
    save_adapters,
)
from timm_mvhybrid.models import TEST_MODEL_NAMES

pytest.importorskip("peft")

GOLDEN = Path(__file__).parents[1] / "golden" / "finetuning" / "lora.npz"
VIT = dict(img_size=64, depth=2, embed_dim=64, num_heads=2, num_classes=0)
BACKBONES = [*((name, dict(img_size=64)) for name in TEST_MODEL_NAMES), ("vit_tiny_patch16_224", VIT)]


def backbone(name="test_vim_einfft", options=None, seed=0):
    torch.manual_seed(seed)
    return timm.create_model(name, **(options or dict(img_size=64))).eval()


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def learn(adapted):
    """Gives every adapter something to say."""
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=g)
    return adapted


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_merging_is_pefts(kind):
    golden = {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(GOLDEN, allow_pickle=False).items()}
    layer = nn.Linear(12, 20, dtype=torch.float64)
    model = nn.ModuleDict({"fc1": layer})
    model.forward = lambda x: model["fc1"](x)
    with torch.no_grad():
        layer.weight.copy_(golden[f"{kind}_weight"])
        layer.bias.copy_(golden[f"{kind}_bias"])
    adapted = lora(
        model,
        int(golden["r"]),
        int(golden["alpha"]),
        0.0,
        use_rslora=kind == "rslora",
        use_dora=kind == "dora",
    )
    found = adapted.base_model.model["fc1"]
    with torch.no_grad():
        found.lora_A["default"].weight.copy_(golden[f"{kind}_A"])
        found.lora_B["default"].weight.copy_(golden[f"{kind}_B"])
        if kind == "dora":
            found.lora_magnitude_vector["default"].weight.copy_(golden["dora_magnitude"])
    torch.testing.assert_close(found(golden[f"{kind}_x"]), golden[f"{kind}_y"], rtol=0, atol=1e-12)
    merged = merge(adapted)["fc1"].weight
    torch.testing.assert_close(merged, golden[f"{kind}_merged_weight"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), BACKBONES)
def test_starts_at_the_base_learns_everywhere_and_merges(name, options):
    base = backbone(name, options)
    expected, before = base(images()), copy.deepcopy(base.state_dict())
    base.patch_embed.requires_grad_(False)
    needed = {k: p.requires_grad for k, p in base.named_parameters()}
    adapted = lora(base)
    assert torch.equal(adapted(images()), expected)
    adapted = learn(adapted)
    adapted.eval()(images()).square().sum().backward()
    for key, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("lora_" in key)
        if parameter.requires_grad:
            assert parameter.grad.any(), key
    changed = adapted(images())
    assert (changed - expected).norm() > 1e-5 * expected.norm()
    merged = merge(adapted)
    assert merged is base
    assert (merged(images()) - changed).abs().max() <= 1e-5 * changed.abs().max()
    assert {k: p.requires_grad for k, p in merged.named_parameters()} == needed
    adaptable = [k for k in before if torch.equal(before[k], merged.state_dict()[k])]
    assert "blocks.0.norm1.weight" in adaptable
    assert merged.state_dict().keys() == before.keys()


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("test_vim_einfft", "dt_proj"),
        ("test_vim_einfft", "dt_proj_b"),
        ("test_hydra_einfft", "fc_D"),
        ("test_mvhybrid", "dt_proj"),
        ("test_mvhybrid", "x_proj"),
    ],
)
def test_layers_inside_the_scan(name, target):
    base = backbone(name)
    expected = base(images())
    adapted = lora(base, targets=[target])
    assert torch.equal(adapted(images()), expected)
    changed = learn(adapted)(images())
    changed.square().sum().backward()
    assert all(p.grad.any() for p in adapted.parameters() if p.requires_grad)
    assert not torch.equal(changed, expected)
    assert (merge(adapted)(images()) - changed).abs().max() <= 1e-5 * changed.abs().max()


def test_a_half_width_model_is_merged_in_float32():
    adapted = learn(lora(backbone("test_mvhybrid").to(torch.bfloat16)))
    layer = adapted.base_model.model.blocks[0].mixer.in_proj
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer.weight.float() + 2 * (B.float() @ A.float())
    merged = merge(adapted)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    torch.testing.assert_close(merged.blocks[0].mixer.in_proj.weight, expected, rtol=0, atol=1e-7)


def test_with_the_st_token():
    model = STModel(backbone("test_mvhybrid"), st_start=0).eval()
    expected = model.features(images())
    adapted = lora(model)
    for key, value in adapted(images()).items():
        assert torch.equal(value, expected[key])
    learn(adapted)
    features = adapted.train().features(images())
    (features["st"] @ torch.linspace(-1, 1, 64)).square().sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    # the adapters' dropout too leaves the generator to the ordinary tokens
    torch.manual_seed(3)
    with_token = adapted.features(images())["class"]
    torch.manual_seed(3)
    assert torch.equal(adapted.base_model.model.backbone.forward_features(images())[:, 0], with_token)
    changed = adapted.eval().features(images())
    merged = merge(adapted)
    for key, value in merged.features(images()).items():
        torch.testing.assert_close(value, changed[key], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(targets="all-linear"), "all-linear"),
        (dict(targets=["qkv", "nothing"]), "'nothing', which names no layer"),
        (dict(targets=["proj"]), "patch_embed.proj too"),
        (dict(targets=["conv1d"]), "conv1d, whose weights the mixer reads"),
        (dict(targets=["norm1"]), "norm1, a RMSNorm"),
        (dict(init_lora_weights="pissa"), "PiSSA"),
        (dict(init_lora_weights="pissa_niter_4"), "PiSSA"),
        (dict(init_lora_weights="olora"), "OLoRA"),
        (dict(lora_bias=True), "`lora_bias`"),
        (dict(bias="all"), "`bias`"),
        (dict(targets=["dt_proj"], use_dora=True), "use_dora=True"),
        (dict(target_modules=["qkv"]), "`targets`"),
        (dict(r=0), "`r` is 0"),
        (dict(dropout=1.0), "`dropout` is 1.0"),
        (dict(nonsense=1), "nonsense"),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused(arguments, message):
    base = backbone("test_vim_einfft")
    if arguments.get("targets") == ["proj"]:
        base = backbone("test_mvhybrid")
    names = [name for name, _ in base.named_modules()]
    if arguments.get("targets") == ["qkv", "nothing"]:
        base = backbone("test_mvhybrid")
        names = [name for name, _ in base.named_modules()]
    with pytest.raises(FinetuneError, match=message):
        lora(base, **arguments)
    assert [name for name, _ in base.named_modules()] == names
    assert all(p.requires_grad for p in base.parameters())


def test_the_patch_embedding_where_it_is_asked_for():
    base = backbone("test_mvhybrid")
    adapted = learn(lora(base, targets=["attn.proj", "patch_embed.proj"]))
    changed = adapted(images())
    assert (merge(adapted)(images()) - changed).abs().max() <= 1e-5 * changed.abs().max()


def test_files_know_their_base(tmp_path):
    adapted = learn(lora(backbone(), r=4, targets=["in_proj", "dt_proj"], use_rslora=True))
    expected = adapted(images())
    save_adapters(adapted, tmp_path / "adapters", model_args={"img_size": 64})
    assert {p.name for p in (tmp_path / "adapters").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "base.json",
    }
    loaded = load_adapters(backbone(), tmp_path / "adapters", model_args={"img_size": 64})
    assert torch.equal(loaded(images()), expected)
    for base, model_args, message in (
        (backbone(seed=1), {"img_size": 64}, "sha256"),
        (backbone(), {}, "model_args"),
        (backbone("test_mvhybrid"), {"img_size": 64}, "model 'test_vim_einfft'"),
    ):
        names = [name for name, _ in base.named_modules()]
        with pytest.raises(FinetuneError, match=message):
            load_adapters(base, tmp_path / "adapters", model_args=model_args)
        assert [name for name, _ in base.named_modules()] == names
    config = tmp_path / "adapters" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "r": 2}))
    with pytest.raises(FinetuneError, match="its tensors are not those"):
        load_adapters(base := backbone(), tmp_path / "adapters", model_args={"img_size": 64})
    assert base.state_dict().keys() == backbone().state_dict().keys()
    (tmp_path / "adapters" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(FinetuneError, match="cannot be read"):
        load_adapters(backbone(), tmp_path / "adapters", model_args={"img_size": 64})


def test_models_without_adapters_are_refused(tmp_path):
    with pytest.raises(FinetuneError, match="without adapters"):
        merge(backbone())
    with pytest.raises(FinetuneError, match="without adapters"):
        save_adapters(backbone(), tmp_path)
    with pytest.raises(FinetuneError, match="has adapters already"):
        lora(lora(backbone()))
