"""EinFFT: the operator that works in place against its plain form, which goldens of the published module test."""

import pytest
import torch
from support.bounds import assert_accurate, away_from_kinks
from support.goldens import relative_error

from timm_mvhybrid.layers import EinFFT
from timm_mvhybrid.ops import spectral
from timm_mvhybrid.ops.autograd import ALL_NEEDED
from timm_mvhybrid.ops.einfft import cpu, einfft
from timm_mvhybrid.ops.einfft import einfft_portable as plain
from timm_mvhybrid.ops.workspace import cut_batch

LENGTHS = [1, 2, 3, 16, 17, 63, 197, 257]


def make_inputs(length, *, batch=3, dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    width = dim // 4
    return [
        draw(batch, length, dim),
        draw(2, 4, width, width),
        draw(2, 4, width),
        draw(2, 4, width, width),
        draw(2, 4, width),
    ]


def run(function, inputs, threshold=0.3):
    y = function(*inputs, threshold)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, cotangent)]


@pytest.fixture(autouse=True)
def rooms_start_as_nan(monkeypatch):
    """Fills every work buffer with NaN, so that reading what was not written shows."""
    take = cpu._Workspace._take

    def poisoned(self, name, rows, a_row):
        fresh = name not in self._room
        values = take(self, name, rows, a_row)
        return values.fill_(torch.nan) if fresh else values

    monkeypatch.setattr(cpu._Workspace, "_take", poisoned)


@pytest.mark.parametrize("length", LENGTHS)
def test_operator_equals_the_plain_form_in_float64(length):
    inputs = make_inputs(length)
    for actual, expected in zip(run(einfft, inputs), run(plain, inputs), strict=True):
        assert relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize("length", [16, 17, 257])
@pytest.mark.parametrize("function", [einfft, plain])
def test_float32_error_is_that_of_its_roundings(length, function):

    def exact(inputs):
        return run(plain, inputs)

    inputs = away_from_kinks(
        lambda seed: make_inputs(length, dim=64, dtype=torch.float32, seed=seed), exact, reach=2.0**-20
    )
    assert_accurate(run(function, inputs), exact, inputs, roundings=length + 4 * 16)


def test_shrinkage_cuts_part_of_the_spectrum():
    inputs = make_inputs(17)
    shrunk, whole = plain(*inputs, 0.3), plain(*inputs, 0.0)
    assert relative_error(shrunk, whole) > 1e-2


def test_parts_of_the_batch(monkeypatch):
    inputs = make_inputs(9, batch=5)
    expected = run(einfft, inputs)
    monkeypatch.setattr(cpu, "PART_ELEMENTS", 2 * 9 * 8)
    assert [rows.stop - rows.start for rows in cut_batch(inputs[0], 2 * 9 * 8)[0]] == [2, 2, 1]
    for actual, value in zip(run(einfft, inputs), expected, strict=True):
        assert relative_error(actual, value) < 1e-12


def test_tokens_may_be_a_strided_view():
    inputs = make_inputs(9)
    expected = run(einfft, inputs)
    wide = torch.cat([inputs[0], inputs[0]], dim=-1).detach()[..., 8:].requires_grad_()
    for actual, value in zip(run(einfft, [wide, *inputs[1:]]), expected, strict=True):
        assert relative_error(actual, value) < 1e-12


def test_empty_batch():
    inputs = make_inputs(5, batch=0)
    assert einfft(*inputs, 0.01).shape == (0, 5, 8)
    assert run(einfft, inputs)[1].abs().sum() == 0


def test_long_sequences_take_the_plain_form(monkeypatch):
    length = spectral.MATRIX_LENGTH + 1
    inputs = make_inputs(length, batch=1)
    monkeypatch.setattr(cpu, "cut_batch", None)  # without which the operator cannot run
    assert relative_error(einfft(*inputs, 0.01), plain(*inputs, 0.01)) == 0


def test_gradcheck():

    def shrunk(*tensors):
        return einfft(*tensors, 0.01)

    # away from the kinks of ReLU and shrinkage by ten of gradcheck's steps, for no derivative exists there
    inputs = away_from_kinks(
        lambda seed: make_inputs(5, batch=2, dim=4, seed=seed), lambda x: run(einfft, x, 0.01), reach=1e-5
    )
    assert torch.autograd.gradcheck(shrunk, inputs)


@pytest.mark.parametrize("frozen", [{1, 2, 3, 4}, {1}, {3}, {0}])
def test_gradients_are_the_same_where_others_are_not_asked_for(frozen):
    inputs = make_inputs(17)
    whole = torch.autograd.grad(einfft(*inputs, 0.01).square().sum(), inputs)
    leaves = [x.detach().requires_grad_(i not in frozen) for i, x in enumerate(inputs)]
    einfft(*leaves, 0.01).square().sum().backward()
    for i, (leaf, expected) in enumerate(zip(leaves, whole, strict=True)):
        assert leaf.grad is None if i in frozen else torch.equal(leaf.grad, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_opcheck():
    x, weight_1, bias_1, weight_2, bias_2 = (v.detach() for v in make_inputs(6))
    arguments = tuple(v.clone().requires_grad_() for v in (x, weight_1, bias_1, weight_2, bias_2))
    torch.library.opcheck(torch.ops.timm_mvhybrid.einfft.default, (*arguments, 0.01, True))
    y, saved, passed = torch.ops.timm_mvhybrid.einfft(x, weight_1, bias_1, weight_2, bias_2, 0.01, True)
    backward = (torch.ones_like(y), saved, passed, x, weight_1, bias_1, weight_2, bias_2)
    for needed in (ALL_NEEDED, 0b10101):
        torch.library.opcheck(torch.ops.timm_mvhybrid.einfft_backward.default, (*backward, needed))
    with pytest.raises(RuntimeError, match="save=True"):
        torch.ops.timm_mvhybrid.einfft(*arguments, 0.01, False)


def test_inference_keeps_nothing():
    inputs = [v.detach() for v in make_inputs(6)]
    y, saved, passed = torch.ops.timm_mvhybrid.einfft(*inputs, 0.01, False)
    assert saved.numel() == passed.numel() == 0
    assert relative_error(y, torch.ops.timm_mvhybrid.einfft(*inputs, 0.01, True)[0]) == 0


def test_vmap_and_grad_take_the_plain_form():
    inputs = [v.detach() for v in make_inputs(6, batch=4)]
    expected = einfft(*inputs, 0.01)
    each = torch.vmap(lambda x: einfft(x[None], *inputs[1:], 0.01)[0])(inputs[0])
    assert relative_error(each, expected) < 1e-12
    by_func = torch.func.grad(lambda x: einfft(x, *inputs[1:], 0.01).sum())(inputs[0])
    x = inputs[0].clone().requires_grad_()
    einfft(x, *inputs[1:], 0.01).sum().backward()
    assert relative_error(by_func, x.grad) < 1e-12


def test_autocast_does_not_reach_inside():
    module, x = EinFFT(16), torch.randn(2, 9, 16)
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
