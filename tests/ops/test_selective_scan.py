"""The selective scan against goldens of mamba_ssm's reference, and against the loop that specifies it."""

from dataclasses import replace

import pytest
import torch
from support.bounds import assert_accurate
from support.goldens import load_golden, relative_error
from support.scans import scan_inputs

from timm_mvhybrid.ops import selective_scan, selective_scan_reference, use_implementation
from timm_mvhybrid.ops.autograd import ALL_NEEDED
from timm_mvhybrid.ops.implementation import why_not
from timm_mvhybrid.ops.selective_scan import cpu

GOLDENS = ["a_selscan_L1", "a_selscan_L17", "a_selscan_L17_nobias_nosoftplus_grouped", "a_selscan_L50"]
IMPLEMENTATIONS = [selective_scan, selective_scan_reference]
LENGTHS = [1, 2, 17, 63, 197, 257]


@pytest.fixture(autouse=True, params=["cpu", "numba"])
def implementation(request):
    """What ``selective_scan`` runs on; tests of the loop alone need no second round."""
    by_reference = getattr(request.node, "callspec", None)
    if (
        by_reference
        and by_reference.params.get("scan") is selective_scan_reference
        and request.param != "cpu"
    ):
        pytest.skip("the loop is the same")
    if reason := why_not("selective_scan", request.param, "cpu", torch.float32):
        pytest.skip(reason)
    with use_implementation(request.param):
        yield request.param


def run_golden(scan, golden, dtype):
    inputs = {name: x.to(dtype).requires_grad_() for name, x in golden.inputs.items()}
    y, last_state = scan(**inputs, delta_softplus=golden.config["delta_softplus"], return_last_state=True)
    y.backward(golden.cotangents["y"].to(dtype))
    return {"y": y.detach(), "last_state": last_state.detach()}, {
        f"input.{name}": x.grad for name, x in inputs.items()
    }


@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("scan", IMPLEMENTATIONS)
def test_golden_float64(scan, name):
    golden = load_golden(name)
    outputs, grads = run_golden(scan, golden, torch.float64)
    assert outputs.keys() == golden.outputs.keys()
    assert grads.keys() == golden.grads.keys()
    for key, expected in golden.outputs.items():
        assert relative_error(outputs[key], expected) < 1e-10, key
    for key, expected in golden.grads.items():
        assert relative_error(grads[key], expected) < 1e-10, key


@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("scan", IMPLEMENTATIONS)
def test_golden_float32(scan, name):
    golden = load_golden(name)

    def run_all(inputs, dtype=torch.float64):
        outputs, grads = run_golden(scan, replace(golden, inputs=inputs), dtype)
        return outputs | grads

    length, d_state = golden.inputs["u"].shape[-1], golden.inputs["A"].shape[-1]
    actual, exact = run_all(golden.inputs, torch.float32), golden.outputs | golden.grads
    assert_accurate(actual, run_all, golden.inputs, roundings=length + d_state, exact=exact)


def run(scan, inputs, *, softplus=True, reverse=False, seed=1):
    """Returns y, the last state and every gradient, through both outputs."""
    y, last_state = scan(**inputs, delta_softplus=softplus, return_last_state=True, reverse=reverse)
    generator = torch.Generator().manual_seed(seed)
    objective = sum(
        (x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum()
        for x in (y, last_state)
    )
    present = {name: x for name, x in inputs.items() if x is not None}
    grads = torch.autograd.grad(objective, list(present.values()))
    return {"y": y.detach(), "last_state": last_state.detach(), **dict(zip(present, grads, strict=True))}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("options", "groups", "softplus"),
    [("Dzb", None, True), ("", 2, False), ("Db", "constant", True), ("z", 3, True)],
)
def test_equals_reference_float64(length, options, groups, softplus, reverse):
    inputs = scan_inputs(length, options=options, groups=groups)
    expected = run(selective_scan_reference, inputs, softplus=softplus, reverse=reverse)
    actual = run(selective_scan, inputs, softplus=softplus, reverse=reverse)
    assert actual.keys() == expected.keys()
    for key in expected:
        assert relative_error(actual[key], expected[key]) < 1e-12, key


def test_gradients_are_the_same_where_weights_are_frozen():
    inputs = scan_inputs(70, options="Dzb", dtype=torch.float32)
    whole = torch.autograd.grad(selective_scan(**inputs, delta_softplus=True).square().sum(), inputs.values())
    frozen = {"A", "D", "delta_bias"}
    leaves = {name: x.detach().requires_grad_(name not in frozen) for name, x in inputs.items()}
    selective_scan(**leaves, delta_softplus=True).square().sum().backward()
    for (name, leaf), expected in zip(leaves.items(), whole, strict=True):
        assert leaf.grad is None if name in frozen else torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("scan", [selective_scan, selective_scan_reference])
def test_reversed_scan_is_the_scan_of_reversed_tokens(scan):
    inputs = {name: x.detach() for name, x in scan_inputs(19, groups=2).items()}
    turned = {name: x.flip(-1) if name in ("u", "delta", "B", "C", "z") else x for name, x in inputs.items()}
    y, last_state = scan(**inputs, delta_softplus=True, return_last_state=True, reverse=True)
    expected, expected_state = scan(**turned, delta_softplus=True, return_last_state=True)
    assert relative_error(y, expected.flip(-1)) < 1e-12
    assert relative_error(last_state, expected_state) < 1e-12


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scan", IMPLEMENTATIONS)
def test_float32_error_is_that_of_its_roundings(scan, length):
    inputs = scan_inputs(length, d_inner=32, d_state=16, dtype=torch.float32)
    actual = run(scan, inputs)
    assert_accurate(actual, lambda x: run(selective_scan_reference, x), inputs, roundings=length + 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_accumulate_in_float32(dtype):
    inputs = scan_inputs(197, d_inner=16, d_state=16, dtype=dtype)
    widened = {name: x.detach().float().requires_grad_() for name, x in inputs.items()}
    y, last_state = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    exact, exact_state = selective_scan(**widened, delta_softplus=True, return_last_state=True)
    assert y.dtype == dtype
    assert last_state.dtype == torch.float32
    torch.testing.assert_close(last_state, exact_state, rtol=0, atol=0)
    torch.testing.assert_close(y, exact.to(dtype), rtol=0, atol=0)


def test_autocast_does_not_reach_inside():
    inputs = scan_inputs(40, dtype=torch.float32)
    expected = run(selective_scan, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(selective_scan, inputs)
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=0)


def test_groups_of_b_and_c_may_differ():
    inputs = scan_inputs(9, groups=2)
    inputs["C"] = inputs["C"].detach()[:, :1].clone().requires_grad_()
    expected, actual = run(selective_scan_reference, inputs), run(selective_scan, inputs)
    for key in expected:
        assert relative_error(actual[key], expected[key]) < 1e-12, key


@pytest.mark.parametrize("implementation", ["cpu"], indirect=True)
def test_parts_of_the_batch(monkeypatch):
    inputs = scan_inputs(33, batch=5)
    expected = run(selective_scan, inputs)
    monkeypatch.setattr(cpu, "PART_ELEMENTS", 2 * cpu.CHUNK * 6 * 3)
    actual = run(selective_scan, inputs)
    for key in expected:
        assert relative_error(actual[key], expected[key]) < 1e-14, key


def test_empty_batch():
    inputs = scan_inputs(5, batch=0)
    assert selective_scan(**inputs).shape == (0, 6, 5)


def test_steps_beyond_the_softplus_threshold():
    inputs = scan_inputs(5)
    inputs["delta"] = (inputs["delta"].detach() + 25).requires_grad_()
    inputs["A"] = (inputs["A"].detach() * 1e-2).requires_grad_()
    expected, actual = run(selective_scan_reference, inputs), run(selective_scan, inputs)
    for key in expected:
        assert relative_error(actual[key], expected[key]) < 1e-13, key


def test_gradcheck():
    inputs = scan_inputs(5, d_inner=2, d_state=2)
    names = list(inputs)

    def scan(*tensors):
        return selective_scan(
            **dict(zip(names, tensors, strict=True)), delta_softplus=True, return_last_state=True
        )

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


# torch's own check reads .grad of tensors that it cloned
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_opcheck(implementation):
    inputs = [None if x is None else x.detach() for x in scan_inputs(18).values()]
    u, delta, A, B, C, D, z, bias = inputs
    token_major = (
        u.mT,
        delta.mT,
        A,
        B.permute(0, 2, 1)[:, :, None],
        C.permute(0, 2, 1)[:, :, None],
        D,
        z.mT,
        bias,
    )
    arguments = tuple(x.clone().requires_grad_() for x in token_major)
    torch.library.opcheck(
        torch.ops.timm_mvhybrid.selective_scan.default, (*arguments, True, True, implementation, False)
    )
    y, last_state, states = torch.ops.timm_mvhybrid.selective_scan(
        *token_major, True, True, implementation, False
    )
    backward = (
        torch.ones_like(y),
        torch.ones_like(last_state),
        states,
        *token_major,
        True,
        implementation,
        False,
    )
    for needed in (ALL_NEEDED, 0b11011011):
        torch.library.opcheck(torch.ops.timm_mvhybrid.selective_scan_backward.default, (*backward, needed))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("u", lambda x: x[0], "`u` has shape"),
        ("u", lambda x: x[..., :0], "length ≥ 1"),
        ("delta", lambda x: x[:, :-1], "`delta` has shape"),
        ("A", lambda x: x[:-1], "`A` has shape"),
        ("A", lambda x: x.to(torch.complex64), "`A` has dtype torch.complex64"),
        ("B", lambda x: x[..., :-1], "`B` has shape"),
        ("C", lambda x: x[:, None].expand(-1, 4, -1, -1), "groups divides d_inner=6"),
        ("D", lambda x: x[:-1], "`D` has shape"),
        ("z", lambda x: x[:1], "`z` has shape"),
        ("delta_bias", lambda x: x[None], "`delta_bias` has shape"),
    ],
)
def test_bad_arguments_are_named(name, change, message):
    inputs = {key: x.detach() for key, x in scan_inputs(7).items()}
    inputs[name] = change(inputs[name])
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs)


def test_operator_refuses_gradients_without_states():
    u, delta, A, B, C, D, z, bias = scan_inputs(7, groups=1).values()
    B, C = (x.permute(0, 3, 1, 2) for x in (B, C))
    with pytest.raises(RuntimeError, match="save_states=True"):
        torch.ops.timm_mvhybrid.selective_scan(
            u.mT, delta.mT, A, B, C, D, z.mT, bias, True, False, "auto", False
        )
