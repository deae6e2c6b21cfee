"""Hydra's matrix: the operator for both directions against two plain loops, a shift and a diagonal."""

import pytest
import torch
from support.bounds import assert_accurate
from support.goldens import relative_error

from timm_mvhybrid import ops
from timm_mvhybrid.ops import ssd_scan_reference
from timm_mvhybrid.ops.quasiseparable import (
    composed,
    cpu,
    cpu_backward,
    layout,
    quasiseparable,
    quasiseparable_portable,
)
from timm_mvhybrid.ops.quasiseparable.inputs import Inputs
from timm_mvhybrid.ops.ssd import cpu as scan_cpu
from timm_mvhybrid.ops.workspace import cut_batch

LENGTHS = [1, 2, 17, 64, 65, 129, 257]
NAMES = ["x", "dt", "A", "B", "C", "dt_bias", "diagonal"]


@pytest.fixture(autouse=True)
def rooms_start_as_nan(monkeypatch):
    """Fills every work buffer with NaN, so that reading what was not written shows."""
    scratch = layout.scratch
    monkeypatch.setattr(
        layout, "scratch", lambda *arguments: [room.fill_(torch.nan) for room in scratch(*arguments)]
    )


@pytest.fixture(autouse=True, params=["cpu", "numba"])
def taken(request):
    """Runs each test by both implementations that have a form of their own."""
    if request.param == "numba":
        pytest.importorskip("numba", reason="numba is not installed")
    with ops.use_implementation(request.param):
        yield request.param


of_plain_torch = pytest.mark.parametrize("taken", ["cpu"], indirect=True)


def make_inputs(length, *, batch=2, heads=4, headdim=3, d_state=5, groups=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [
        draw(batch, length, heads, headdim),
        draw(batch, length, 2, heads),
        -draw(heads).exp(),
        draw(batch, length, 2, groups, d_state),
        draw(batch, length, 2, groups, d_state),
        draw(heads),
        draw(batch, length, heads),
    ]
    return [v.to(dtype).requires_grad_() for v in inputs]


def specified(x, dt, A, B, C, dt_bias, diagonal):
    """The definition, with the loop that specifies the scan."""
    forward, backward = (
        ssd_scan_reference(
            x, dt[:, :, k], A, B[:, :, k], C[:, :, k], None, dt_bias, dt_softplus=True, reverse=k == 1
        )
        for k in range(2)
    )
    zero = torch.zeros_like(x[:, :1])
    shifted = torch.cat([zero, forward[:, :-1]], dim=1) + torch.cat([backward[:, 1:], zero], dim=1)
    return shifted + diagonal.unsqueeze(-1) * x


def run(function, inputs):
    y = function(*inputs)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, cotangent)]


def take_another_implementation(monkeypatch):
    """Puts the plain scan in the place of a kernel."""
    monkeypatch.setattr("timm_mvhybrid.ops.autograd.choose", lambda *arguments: "triton")
    monkeypatch.setattr("timm_mvhybrid.ops.quasiseparable.operator.load", lambda operation, name: scan_cpu)


def assert_equal(actual, expected, tolerance=1e-12):
    for name, value, exact in zip(["y", *NAMES], actual, expected, strict=True):
        assert relative_error(value, exact) < tolerance, name


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("groups", [1, 4])
def test_equals_the_definition_in_float64(length, groups):
    inputs = make_inputs(length, groups=groups)
    assert_equal(run(quasiseparable, inputs), run(specified, inputs))


@pytest.mark.parametrize("length", [2, 17, 130])
def test_float32_error_is_that_of_its_roundings(length):
    inputs = make_inputs(length, headdim=16, d_state=16, dtype=torch.float32)
    actual = run(quasiseparable, inputs)
    assert_accurate(actual, lambda x: run(specified, x), inputs, roundings=length + 16 + 16)


def test_float32_keeps_the_accuracy_of_neighbours_under_strong_decay():
    inputs = make_inputs(64, headdim=16, d_state=16, dtype=torch.float32)
    inputs[2] = (40 * inputs[2].detach()).requires_grad_()
    actual = run(quasiseparable, inputs)
    assert_accurate(actual, lambda x: run(specified, x), inputs, roundings=64 + 16 + 16)


def test_decay_rates_may_be_positive():
    inputs = make_inputs(70)
    inputs[2] = torch.tensor([0.02, -0.5, 0.01, -1.0], dtype=torch.float64, requires_grad=True)
    assert_equal(run(quasiseparable, inputs), run(specified, inputs))


def test_step_sizes_that_underflow_have_finite_gradients():
    inputs = make_inputs(9, dtype=torch.float32)
    with torch.no_grad():
        inputs[1][0, 3, 0] = -500.0
        inputs[1][1, 4, 1] = 500.0
    expected = run(specified, [v.detach().double().requires_grad_() for v in inputs])
    actual = run(quasiseparable, inputs)
    assert actual[2][0, 3, 0].abs().sum() == 0
    assert_equal(actual, expected, 1e-5)


@of_plain_torch
def test_parts_of_the_batch(monkeypatch):
    inputs = make_inputs(70, batch=5)
    expected = run(quasiseparable, inputs)
    for module in (cpu, cpu_backward):
        monkeypatch.setattr(module, "PART_ELEMENTS", 2 * 70 * 12)
    assert [rows.stop - rows.start for rows in cut_batch(inputs[0], 2 * 70 * 12)[0]] == [2, 2, 1]
    assert_equal(run(quasiseparable, inputs), expected)


@of_plain_torch
def test_many_chunks(monkeypatch):
    monkeypatch.setattr(scan_cpu, "CHUNK", 4)
    for length in (4, 5, 8, 9, 30):
        inputs = make_inputs(length)
        assert_equal(run(quasiseparable, inputs), run(specified, inputs))


def test_inputs_may_be_slices_of_one_projection():
    inputs = make_inputs(70, groups=1)
    x, dt, A, B, C, dt_bias, diagonal = inputs
    expected = run(quasiseparable, inputs)
    wide = torch.cat([v.detach().flatten(2) for v in (x, B, dt, diagonal, C)], dim=-1)
    pieces = wide.split([v.flatten(2).shape[-1] for v in (x, B, dt, diagonal, C)], dim=-1)
    x, B, dt, diagonal, C = (
        piece.unflatten(-1, v.shape[2:]).requires_grad_()
        for piece, v in zip(pieces, (x, B, dt, diagonal, C), strict=True)
    )
    assert not x.is_contiguous()
    assert_equal(run(quasiseparable, [x, dt, A, B, C, dt_bias, diagonal]), expected)


def test_empty_batch():
    inputs = make_inputs(70, batch=0)
    y, *grads = run(quasiseparable, inputs)
    assert y.shape == (0, 70, 4, 3)
    for value, grad in zip(inputs, grads, strict=True):
        assert grad.shape == value.shape
        assert grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_accumulate_in_float32(dtype):
    inputs = make_inputs(90, dtype=dtype)
    # as the mixer keeps them
    inputs[2], inputs[5] = (v.detach().float().requires_grad_() for v in (inputs[2], inputs[5]))
    exact = run(quasiseparable, [v.detach().float().requires_grad_() for v in inputs])
    for value, number, argument in zip(run(quasiseparable, inputs), exact, [inputs[0], *inputs], strict=True):
        assert value.dtype == argument.dtype
        # the cotangent too is rounded to the half dtype
        assert relative_error(value, number) < 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(quasiseparable(*inputs), exact[0].to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("implementation", ["cpu", "another"])
def test_autocast_does_not_reach_inside(implementation, monkeypatch):
    inputs = make_inputs(70, dtype=torch.float32)
    if implementation == "another":
        take_another_implementation(monkeypatch)
    expected = run(quasiseparable, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(quasiseparable, inputs)
    assert_equal(actual, expected, 1e-30)


@of_plain_torch
def test_gradcheck(monkeypatch):
    monkeypatch.setattr(scan_cpu, "CHUNK", 2)
    inputs = make_inputs(5, batch=1, heads=2, headdim=2, d_state=2)
    assert torch.autograd.gradcheck(quasiseparable, inputs)


def test_second_derivatives_are_refused():
    inputs = make_inputs(5)
    (grad,) = torch.autograd.grad(quasiseparable(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()


# torch's own check reads .grad of tensors that it cloned
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_opcheck(taken):
    inputs = make_inputs(65)
    torch.library.opcheck(torch.ops.timm_mvhybrid.quasiseparable.default, (*inputs, True, "auto"))
    detached = [v.detach() for v in inputs]
    y, states = torch.ops.timm_mvhybrid.quasiseparable(*detached, True, taken)
    backward = (torch.ones_like(y), states, *detached, taken)
    torch.library.opcheck(torch.ops.timm_mvhybrid.quasiseparable_backward.default, backward)
    with pytest.raises(RuntimeError, match="save_states=True"):
        torch.ops.timm_mvhybrid.quasiseparable(*inputs, False, taken)


def test_inference_keeps_nothing(taken):
    inputs = [v.detach() for v in make_inputs(70)]
    y, states = torch.ops.timm_mvhybrid.quasiseparable(*inputs, False, taken)
    assert states.numel() == 0
    assert relative_error(y, torch.ops.timm_mvhybrid.quasiseparable(*inputs, True, taken)[0]) == 0


@of_plain_torch
@pytest.mark.parametrize("length", [1, 70])
def test_operator_runs_on_the_scan_of_any_implementation(length, monkeypatch):
    """As a scripted model does on a GPU."""
    inputs = make_inputs(length)
    expected = run(quasiseparable, inputs)
    take_another_implementation(monkeypatch)
    monkeypatch.setattr(cpu, "forward", None)
    monkeypatch.setattr(cpu_backward, "backward", None)
    assert_equal(run(quasiseparable, inputs), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_opcheck_on_the_scan_of_another_implementation(monkeypatch):
    take_another_implementation(monkeypatch)
    inputs = make_inputs(70)
    torch.library.opcheck(torch.ops.timm_mvhybrid.quasiseparable.default, (*inputs, True, "auto"))


@of_plain_torch
def test_the_reference_runs_as_two_loops(monkeypatch):
    inputs = make_inputs(9)
    expected = run(quasiseparable, inputs)
    monkeypatch.setattr(cpu, "forward", None)
    with ops.use_implementation("reference"):
        assert_equal(run(quasiseparable, inputs), expected)


@of_plain_torch
def test_operator_refuses_the_reference():
    inputs = [v.detach() for v in make_inputs(3)]
    with pytest.raises(ops.ImplementationError, match="'reference' of ssd_scan cannot run"):
        torch.ops.timm_mvhybrid.quasiseparable(*inputs, False, "reference")


@of_plain_torch
def test_transforms_of_torch_func_see_through(monkeypatch):
    inputs = [v.detach() for v in make_inputs(9)]
    x, *others = inputs
    leaf = x.clone().requires_grad_()
    expected = quasiseparable(leaf, *others)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    monkeypatch.setattr(cpu, "forward", None)
    mapped = [v.unsqueeze(1) for v in inputs]
    in_dims = (0, 0, None, 0, 0, None, 0)
    mapped[2], mapped[5] = inputs[2], inputs[5]
    each = torch.vmap(quasiseparable, in_dims=in_dims)(*mapped).squeeze(1)
    assert relative_error(each, expected.detach()) < 1e-12
    by_func = torch.func.grad(lambda x: quasiseparable(x, *others).sum())(x)
    assert relative_error(by_func, gradient) < 1e-12
    _, tangent = torch.func.jvp(lambda x: quasiseparable(x, *others), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent.sum(), gradient.sum(), rtol=1e-12, atol=1e-12)


@of_plain_torch
def test_composed_gradients_are_those_of_autograd():
    inputs = make_inputs(20)
    y, states = composed.forward(scan_cpu, Inputs(*(v.detach() for v in inputs)), True)
    expected = run(quasiseparable_portable, inputs)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = composed.backward(scan_cpu, cotangent, states, Inputs(*(v.detach() for v in inputs)))
    assert_equal([y, *grads], expected)
