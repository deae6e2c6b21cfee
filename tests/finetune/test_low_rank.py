"""The fast adapted layer against peft's own."""

import copy
import importlib

import pytest
import torch
from torch import nn

from timm_mvhybrid.finetune import lora, low_rank

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


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("numba")
    return importlib.import_module("timm_mvhybrid.finetune.low_rank_kernels")


@pytest.mark.parametrize("shape", [(1, 3, 2, 1), (130, 37, 41, 3), (203, 64, 24, 8)])
@pytest.mark.parametrize("threshold", [0, 9830])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_compiled_kernels_are_the_formula(kernels, shape, threshold, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rows, length, width, rank = shape
    scale, seed = 2.0, (5 << 40) + 3
    x, A, B = torch.randn(rows, length), torch.randn(rank, length), torch.randn(width, rank)
    bias, grad = torch.randn(width), torch.randn(rows, width)
    identity = torch.eye(length)
    m, _ = kernels.start_of(torch.ones_like(x), None, identity, identity, 1.0, seed, threshold)
    assert set(m.unique().tolist()) <= {0.0, 1.0}
    y, inner = kernels.start_of(x, bias, A, B, scale, seed, threshold)
    grads = kernels.gradients(grad, x, A, B, inner, scale, seed, threshold, needs_x=True)

    def formula(x, A, B, bias, grad):
        """Both passes in float64; of magnitudes, what no sum of so many terms can be off by more than a multiple of."""
        inner = x @ A.T
        passed = grad @ B * scale
        return bias + scale * inner @ B.T, passed.T @ x, scale * grad.T @ inner, passed @ A * m.double()

    given = [tensor.double() for tensor in (x * m, A, B, bias, grad)]
    terms = 2 * (rows + length + width + rank + 8)
    bounds = [terms * torch.finfo(torch.float32).eps * z for z in formula(*map(torch.abs, given))]
    for found, expected, bound in zip((y, *grads), formula(*given), bounds, strict=True):
        assert ((found - expected).abs() <= bound).all()
    assert kernels.gradients(grad, x, A, B, inner, scale, seed, threshold, needs_x=False)[2] is None


def test_what_the_kernels_drop_is_as_often_and_as_independent_as_it_should_be(kernels):
    x = torch.ones(2000, 65)
    draw = [kernels.start_of(x, None, torch.eye(65), torch.eye(65), 1.0, seed, 16384)[0] for seed in (1, 2)]
    again = kernels.start_of(x, None, torch.eye(65), torch.eye(65), 1.0, 1, 16384)[0]
    assert torch.equal(draw[0], again)
    first, other = (dropped - 0.75 for dropped in draw)
    # of means of n products of two independent draws, each of variance 3 / 16
    for product in (
        first[:-1] * first[1:],
        first[:, :-1] * first[:, 1:],
        first[:, :33] * first[:, -33:],
        first[:, :32] * first[:, 33:],
        first * other,
    ):
        assert abs(product.mean().item()) < 5 * 3 / 16 / product.numel() ** 0.5
    assert abs(first.mean().item()) < 5 * (3 / 16 / first.numel()) ** 0.5
    assert (first.mean(dim=0).abs() < 5 * (3 / 16 / 2000) ** 0.5).all()


@pytest.mark.parametrize("bias", [False, True])
def test_an_adapter_that_has_learned_nothing_changes_no_bit_of_float32(bias):
    torch.manual_seed(0)
    for length, width, rows in ((64, 192, 130), (384, 96, 257), (33, 7, 5)):
        layer = nn.Linear(length, width, bias=bias)
        x = torch.randn(rows, length)
        expected = layer(x)
        adapted = lora(nn.ModuleDict({"fc1": layer}), dropout=0.2).base_model.model["fc1"].train()
        assert torch.equal(adapted(x), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_without_numba_the_layer_computes_the_same_distribution(dropout, monkeypatch):
    _, layer = pair(dropout=dropout, dtype=torch.float32)
    x = torch.randn(400, 12)
    compiled = results(layer, x, seed=3)
    monkeypatch.setattr(low_rank, "compiled_kernels", lambda *_: None)
    plain = results(layer, x, seed=3)
    if not dropout:
        for found, expected in zip(plain, compiled, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        return
    base = layer.base_layer(x)
    # both are unbiased: their means over rows differ by what the noise of 400 rows may do
    spread = (compiled[0] - base).std(dim=0) / 20
    assert ((plain[0] - compiled[0]).mean(dim=0).abs() < 6 * 1.5 * spread).all()


def test_memory_of_parameters_can_be_freed_afterwards_as_fsdp_does():
    _, layer = pair(dropout=0.2, dtype=torch.float32)
    results(layer, torch.randn(5, 12))
    for parameter in layer.parameters():
        storage = parameter.detach().untyped_storage()
        storage.resize_(0)
        assert storage.size() == 0
