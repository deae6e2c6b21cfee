"""The fast adapted layer against peft's own."""

import copy

import pytest
import torch
from torch import nn

from timm_mvhybrid.finetune import lora

peft = pytest.importorskip("peft")


def pair(dropout=0.0, dtype=torch.float64):
    """peft's layer and ours, with the same weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.ModuleDict({"fc1": nn.Linear(12, 20)})["fc1"]).to(dtype)
    ours = lora(nn.ModuleDict({"stem": model[0], "fc1": model[1]}), r=4, dropout=dropout)
    layer = ours.base_model.model["fc1"]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    own = copy.deepcopy(layer)
    own.__class__ = peft.tuners.lora.Linear
    return own, layer


def results(layer, x, seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    adapter = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    return y, *torch.autograd.grad((y * weights).sum(), [x, *adapter])


@pytest.mark.parametrize("shape", [(3, 12), (2, 5, 12), (0, 12)])
def test_is_pefts_without_dropout(shape):
    own, layer = pair()
    assert type(layer) is not type(own)
    x = torch.randn(shape, dtype=torch.float64)
    for found, expected in zip(results(layer, x), results(own, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_of_an_evaluated_layer_nothing_is_dropped_or_drawn():
    own, layer = pair(dropout=0.5)
    own.eval(), layer.eval()
    x = torch.randn(4, 12, dtype=torch.float64)
    state = torch.get_rng_state()
    torch.testing.assert_close(layer(x), own(x), rtol=0, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)


def test_drops_as_often_as_it_should_and_backward_knows_what():
    _, layer = pair(dropout=0.15)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.eye(4, 12))
        layer.lora_B["default"].weight.copy_(torch.eye(20, 4))
        layer.base_layer.weight.zero_(), layer.base_layer.bias.zero_()
    x = torch.ones(50_000, 12, dtype=torch.float64)
    y, grad, *_ = results(layer, x, seed=5)
    kept = y[:, :4] > 0
    assert (1 - kept.double().mean()).item() == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 200_000) ** 0.5)
    # of scale alpha / r = 4
    torch.testing.assert_close(y[:, :4][kept], torch.full_like(y[:, :4][kept], 4 / 0.85), rtol=1e-4, atol=0)
    assert torch.equal(grad[:, :4] != 0, kept)
    again, other = results(layer, x, seed=5)[0], results(layer, x, seed=6)[0]
    assert torch.equal(again, y)
    assert not torch.equal(other, y)


def test_gradients_with_dropout_are_those_of_what_was_computed():
    _, layer = pair(dropout=0.4)
    parameters = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    def function(x, *_):
        torch.manual_seed(1)
        return layer(x)

    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_under_autocast_and_checkpointing(checkpointed):
    _, layer = pair(dropout=0.4, dtype=torch.float32)
    x = torch.randn(4, 12, requires_grad=True)

    def run():
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16):
            if checkpointed:
                return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
            return layer(x)

    y = run()
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    grad = x.grad.clone()
    assert torch.isfinite(grad).all()
    x.grad = None
    run().float().square().sum().backward()
    assert torch.equal(x.grad, grad)


def test_a_layer_whose_adapter_is_off_is_pefts_business():
    own, layer = pair()
    x = torch.randn(4, 12, dtype=torch.float64)
    layer._disable_adapters = own._disable_adapters = True
    assert torch.equal(layer(x), own(x))
    assert torch.equal(layer(x), layer.base_layer(x))
