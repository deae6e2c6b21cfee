"""Whole models against goldens of the published code: parameters, features, blocks and gradients."""

from dataclasses import replace

import pytest
import timm
import torch
from support.bounds import assert_accurate
from support.goldens import load_golden, relative_error

import timm_mvhybrid
from timm_mvhybrid.layers.token_order import to_scan_order
from timm_mvhybrid.models import checkpoint_filter_fn

PARAMETERS = {  # with a mask token, without a head
    "mvhybrid_small_patch16_256": 30_963_072,
    "hydra_hybrid_small_patch16_256": 35_522_352,
    "vim_einfft_small_patch16_256": 29_020_032,
    "hydra_einfft_small_patch16_256": 28_160_736,
    "vit12_small_patch16_256": 21_698_304,
    "vit24_small_patch16_256": 43_001_088,
}
PATCH_VALUES = 3 * 16 * 16


def roundings_of(golden, exact):
    """The sums on the way of a token: the patch's values, then a block's channels, wider inside, and all tokens."""
    num_tokens = max(x.shape[1] for x in exact.values() if x.ndim == 3)
    return PATCH_VALUES + golden.config["depth"] * (5 * golden.config["embed_dim"] + num_tokens)


MV_HYBRID = ["d_mvhybrid_e32_h2_dep4", "d_mvhybrid_e48_h4_dep4"]


@pytest.mark.parametrize("name", timm_mvhybrid.models.MODEL_NAMES)
def test_number_of_parameters(name):
    model = timm.create_model(name, mask_token=True, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    model = timm.create_model(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name] - 384


def test_number_of_parameters_of_stock_vim():
    model = timm.create_model("vim_einfft_small_patch16_256", channel_mixer="none", device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_434_624


def make_mv_hybrid(golden, dtype):
    options = {name: golden.config[name] for name in ("img_size", "embed_dim", "depth", "num_heads")}
    model = timm.create_model("mvhybrid_small_patch16_256", **options, mask_token=True, dtype=dtype).eval()
    params = {name: value.to(dtype) for name, value in golden.params.items()}
    model.load_state_dict(checkpoint_filter_fn(params, model), strict=True)
    return model


def mv_hybrid_features(golden, case, dtype):
    mask = golden.inputs[case["mask"]] if case["mask"] else None
    with torch.no_grad():
        tokens = make_mv_hybrid(golden, dtype).forward_features(golden.inputs[case["img"]].to(dtype), mask)
    return {"x_norm_clstoken": tokens[:, 0], "x_norm_patchtokens": tokens[:, 1:]}


@pytest.mark.parametrize("name", MV_HYBRID)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mv_hybrid_features(name, dtype):
    golden = load_golden(name)
    for case in golden.config["cases"]:
        actual = mv_hybrid_features(golden, case, dtype)
        exact = {key: golden.outputs[f"{case['name']}.{key}"] for key in actual}
        if dtype == torch.float64:
            for key, value in exact.items():
                assert relative_error(actual[key], value) < 1e-10, (case["name"], key)
            continue

        def widened(inputs, case=case):
            params = {key: inputs[key] for key in golden.params}
            drawn = replace(golden, params=params, inputs={**golden.inputs, case["img"]: inputs["image"]})
            return mv_hybrid_features(drawn, case, torch.float64)

        inputs = {"image": golden.inputs[case["img"]], **golden.params}
        assert_accurate(actual, widened, inputs, roundings=roundings_of(golden, exact), exact=exact)


def test_mv_hybrid_official_forward_is_class_token_and_mean():
    golden = load_golden(MV_HYBRID[0])
    model = make_mv_hybrid(golden, torch.float64)
    tokens = model.forward_features(golden.inputs["img64"].double(), golden.inputs["mask_img64"])
    features = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=-1)
    assert relative_error(features, golden.outputs["forward_default"]) < 1e-10


def test_mv_hybrid_blocks_and_gradients():
    golden = load_golden(MV_HYBRID[0])
    model = make_mv_hybrid(golden, torch.float64)
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
    image = golden.inputs["img64"].double().requires_grad_()
    tokens = model.forward_features(image, golden.inputs["mask_img64"])
    objective = (tokens[:, 0] * golden.cotangents["img64_mask.x_norm_clstoken"]).sum()
    objective = objective + (tokens[:, 1:] * golden.cotangents["img64_mask.x_norm_patchtokens"]).sum()
    objective.backward()
    for index, output in enumerate(outputs):
        # the original stays in scan order throughout; our attention blocks are in timm's
        output = to_scan_order(output, 1) if index >= model.ssm_depth else output
        assert relative_error(output, golden.outputs[f"img64_mask.block{index}"]) < 1e-10, index
    assert len(outputs) == 4

    prefix = "img64_mask.param."
    expected = {
        key.removeprefix(prefix): value for key, value in golden.grads.items() if key.startswith(prefix)
    }
    expected["patch_embed.proj.weight"] = model.patch_embed.proj.weight.grad  # not among the goldens
    expected = checkpoint_filter_fn(expected, model)
    for name, parameter in model.named_parameters():
        assert relative_error(parameter.grad, expected[name]) < 1e-10, name
    assert relative_error(image.grad, golden.grads["img64_mask.input.img64"]) < 1e-10


def make_stock_vim(golden, dtype):
    options = {name: golden.config[name] for name in ("img_size", "embed_dim", "depth")}
    model = timm.create_model(
        "vim_einfft_small_patch16_256", **options, num_heads=2, channel_mixer="none", dtype=dtype
    ).eval()
    params = {name: value.to(dtype) for name, value in golden.params.items()}
    model.load_state_dict(checkpoint_filter_fn(params, model), strict=True)
    return model


def test_stock_vim_float64():
    golden = load_golden("f_vimmodel_e32_dep3_img64")
    model = make_stock_vim(golden, torch.float64)
    image = golden.inputs["img"].double()
    tokens, layers = model.forward_intermediates(image, return_prefix_tokens=True, output_fmt="NLC")
    assert relative_error(to_scan_order(tokens, 1), golden.outputs["seq_norm"]) < 1e-10
    assert relative_error(model(image), golden.outputs["cls"]) < 1e-10
    for index, (patches, prefix) in enumerate(layers):
        # the original keeps a layer's output and its residual apart
        expected = golden.outputs[f"layer{index}.hidden"] + golden.outputs[f"layer{index}.residual"]
        actual = to_scan_order(torch.cat([prefix, patches], dim=1), 1)
        assert relative_error(actual, expected) < 1e-10, index


def test_stock_vim_gradients():
    golden = load_golden("f_vimmodel_e32_dep3_img64")
    model = make_stock_vim(golden, torch.float64)
    tokens = model.forward_features(golden.inputs["img"].double())
    to_scan_order(tokens, 1).backward(golden.cotangents["seq_norm"].double())
    expected = {
        key.removeprefix("param."): value for key, value in golden.grads.items() if key.startswith("param.")
    }
    expected.setdefault("patch_embed.proj.weight", model.patch_embed.proj.weight.grad)
    for name, value in checkpoint_filter_fn(expected, model).items():
        assert relative_error(model.get_parameter(name).grad, value) < 1e-10, name


def test_stock_vim_float32():
    golden = load_golden("f_vimmodel_e32_dep3_img64")

    def run(inputs, dtype=torch.float64):
        params = {key: inputs[key] for key in golden.params}
        with torch.no_grad():
            tokens = make_stock_vim(replace(golden, params=params), dtype).forward_features(inputs["img"])
        return {"seq_norm": to_scan_order(tokens, 1)}

    inputs, exact = {"img": golden.inputs["img"], **golden.params}, {"seq_norm": golden.outputs["seq_norm"]}
    actual = run(inputs, torch.float32)
    assert_accurate(actual, run, inputs, roundings=roundings_of(golden, exact), exact=exact)
