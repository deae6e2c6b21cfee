"""The gated norm: the operators that work part by part against the plain form."""

import pytest
import torch
from support.bounds import assert_accurate
from support.goldens import relative_error

from timm_mvhybrid.ops.gated_norm import cpu, gated_norm
from timm_mvhybrid.ops.gated_norm import gated_norm_portable as plain
from timm_mvhybrid.ops.workspace import cut_batch

EPS = 1e-5


@pytest.fixture(autouse=True)
def rooms_start_as_nan(monkeypatch):
    """Fills every work buffer with NaN, so that reading what was not written shows."""
    scratch = cpu.scratch
    monkeypatch.setattr(
        cpu, "scratch", lambda *arguments: [room.fill_(torch.nan) for room in scratch(*arguments)]
    )


def make_inputs(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for size in (shape, shape, shape[-1:])
    ]


def definition(y, z, weight, eps):
    return y / (y.square().mean(-1, keepdim=True) + eps).sqrt() * weight * z * torch.sigmoid(z)


def run(function, inputs):
    out = function(*inputs, EPS)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, cotangent)]


@pytest.mark.parametrize("function", [gated_norm, plain])
@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 1, 6), (3, 17, 10), (2, 257, 1)])
def test_equals_the_definition_in_float64(shape, function):
    inputs = make_inputs(*shape)
    for actual, expected in zip(run(function, inputs), run(definition, inputs), strict=True):
        assert relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize("function", [gated_norm, plain])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_float32_error_is_that_of_its_roundings(scale, function):
    inputs = make_inputs(4, 50, 768, dtype=torch.float32)
    inputs[0] = (scale * inputs[0].detach()).requires_grad_()
    # means over 768 channels; the weight's gradient sums 200 tokens
    assert_accurate(run(function, inputs), lambda x: run(plain, x), inputs, roundings=768)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", ["half", "float32"])
def test_half_inputs_accumulate_in_float32(dtype, weight_dtype):
    y, z, weight = (v.detach() for v in make_inputs(2, 30, 64, dtype=dtype))
    weight = weight.float() if weight_dtype == "float32" else weight
    inputs = [v.requires_grad_() for v in (y, z, weight)]
    exact = run(gated_norm, [v.detach().float().requires_grad_() for v in inputs])
    actual = run(gated_norm, inputs)
    torch.testing.assert_close(actual[0], exact[0].to(dtype), rtol=0, atol=0)
    for value, number, argument in zip(actual[1:], exact[1:], inputs, strict=True):
        assert value.dtype == argument.dtype
        # the cotangent too is rounded to the half dtype
        assert relative_error(value, number) < 8 * torch.finfo(dtype).eps


def test_autocast_does_not_reach_inside():
    inputs = make_inputs(2, 9, 64, dtype=torch.float32)
    expected = run(gated_norm, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(gated_norm, inputs)
    for value, number in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, number, rtol=0, atol=0)


def test_parts_of_the_tokens(monkeypatch):
    inputs = make_inputs(3, 3, 8)
    expected = run(gated_norm, inputs)
    monkeypatch.setattr(cpu, "PART_ELEMENTS", 4 * 8)
    parts, most_rows = cut_batch(inputs[0].flatten(0, 1), 4 * 8)
    assert [rows.stop - rows.start for rows in parts] == [4, 4, 1]
    assert most_rows == 4
    for value, number in zip(run(gated_norm, inputs), expected, strict=True):
        assert relative_error(value, number) < 1e-12
    with torch.no_grad():
        assert (
            relative_error(gated_norm(inputs[0].clone(), *inputs[1:], EPS, overwrite=True), expected[0])
            < 1e-12
        )


def test_inputs_may_be_strided_views():
    y, z, weight = make_inputs(3, 7, 8)
    expected = run(gated_norm, [y, z, weight])
    columns = torch.cat([z, y], dim=-1).detach()
    z, y = (half.requires_grad_() for half in columns.chunk(2, dim=-1))
    for value, number in zip(run(gated_norm, [y, z, weight]), expected, strict=True):
        assert relative_error(value, number) < 1e-12
    # tokens that no single stride leads through
    turned = y.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    for value, number in zip(run(gated_norm, [turned, z, weight]), expected, strict=True):
        assert relative_error(value, number) < 1e-12


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)])
def test_no_tokens(shape):
    out, grad_y, grad_z, grad_weight = run(gated_norm, make_inputs(*shape))
    assert out.shape == grad_y.shape == grad_z.shape == shape
    assert grad_weight.abs().sum() == 0


def test_overwrites_only_where_autograd_does_not_look():
    y, z, weight = make_inputs(2, 5, 8)
    expected = plain(y, z, weight, EPS)
    before = y.detach().clone()
    out = gated_norm(y, z, weight, EPS, overwrite=True)
    assert relative_error(out, expected) < 1e-12
    with torch.no_grad():
        gated_norm(y, z, weight, EPS)
        strided = torch.cat([y, y], dim=-1)[..., :8]
        assert relative_error(gated_norm(strided, z, weight, EPS, overwrite=True), expected) < 1e-12
        assert relative_error(strided, before) == relative_error(y, before) == 0
        overwritten = gated_norm(y, z, weight, EPS, overwrite=True)
    assert overwritten.data_ptr() == y.data_ptr()
    assert relative_error(overwritten, expected) < 1e-12


def test_the_overwriting_operator_wants_contiguous_memory():
    y, z, weight = (v.detach() for v in make_inputs(2, 5, 8))
    with pytest.raises(ValueError, match="must be contiguous"):
        torch.ops.timm_mvhybrid.gated_norm_(y.transpose(0, 1), z.transpose(0, 1), weight, EPS)


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda *v: gated_norm(*v, EPS), make_inputs(2, 3, 4))


def test_second_derivatives_are_refused():
    inputs = make_inputs(2, 3, 4)
    (grad,) = torch.autograd.grad(gated_norm(*inputs, EPS).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()


# torch's own check reads .grad of tensors that it cloned
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_opcheck():
    inputs = make_inputs(2, 3, 8)
    torch.library.opcheck(torch.ops.timm_mvhybrid.gated_norm.default, (*inputs, EPS, True))
    detached = [v.detach() for v in inputs]
    out, scale = torch.ops.timm_mvhybrid.gated_norm(*detached, EPS, True)
    backward = (torch.ones_like(out), scale, *detached)
    torch.library.opcheck(torch.ops.timm_mvhybrid.gated_norm_backward.default, backward)
    half = [v.bfloat16() for v in (torch.ones_like(out), *detached)]
    half.insert(1, scale.float())
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.timm_mvhybrid.gated_norm_backward.default, half, test_utils=checks)
    torch.library.opcheck(torch.ops.timm_mvhybrid.gated_norm_.default, (*detached, EPS))
    assert torch.ops.timm_mvhybrid.gated_norm(*detached, EPS, False)[1].numel() == 0
    with pytest.raises(RuntimeError, match="save=True"):
        torch.ops.timm_mvhybrid.gated_norm(*inputs, EPS, False)


def test_compiled_without_gradients_it_still_leaves_the_caller_its_tensor():
    y, z, weight = (v.detach() for v in make_inputs(2, 5, 8))
    before = y.clone()

    def tail(y):
        return gated_norm(y * 2.0, z, weight, EPS, overwrite=True)

    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(tail, backend="aot_eager", fullgraph=True)(y)
    assert relative_error(compiled, plain(2.0 * y, z, weight, EPS)) < 1e-12
    assert relative_error(y, before) == 0


def test_vmap_and_grad_take_the_plain_form():
    y, z, weight = (v.detach() for v in make_inputs(4, 5, 8))
    expected = gated_norm(y, z, weight, EPS)
    each = torch.vmap(lambda y, z: gated_norm(y[None], z[None], weight, EPS, overwrite=True)[0])(y, z)
    assert relative_error(each, expected) < 1e-12
    by_func = torch.func.grad(lambda y: gated_norm(y, z, weight, EPS).sum())(y)
    leaf = y.clone().requires_grad_()
    gated_norm(leaf, z, weight, EPS).sum().backward()
    assert relative_error(by_func, leaf.grad) < 1e-12
