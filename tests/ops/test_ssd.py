"""The state-space-duality scan against the loop that specifies it."""

import pytest
import torch
from support.bounds import assert_accurate
from support.goldens import relative_error

from timm_mvhybrid.ops import selective_scan, ssd_scan, ssd_scan_reference, use_implementation
from timm_mvhybrid.ops.ssd import cpu

LENGTHS = [1, 2, 17, 63, 64, 65, 197, 257]


@pytest.fixture(autouse=True, params=["cpu", "numba"])
def taken(request):
    """Runs each test by both implementations for CPUs."""
    if request.param == "numba":
        pytest.importorskip("numba", reason="numba is not installed")
    with use_implementation(request.param):
        yield request.param


def make_inputs(
    length, *, batch=2, heads=4, headdim=3, d_state=5, groups=1, options="Db", dtype=torch.float64
):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": draw(batch, length, heads, headdim),
        "dt": draw(batch, length, heads),
        "A": -draw(heads).exp(),
        "B": draw(batch, length, groups, d_state),
        "C": draw(batch, length, groups, d_state),
        "D": draw(heads) if "D" in options else None,
        "dt_bias": draw(heads) if "b" in options else None,
    }
    return {name: None if v is None else v.to(dtype).requires_grad_() for name, v in inputs.items()}


def run(scan, inputs, *, softplus=True, reverse=False):
    y, last_state = scan(**inputs, dt_softplus=softplus, return_last_state=True, reverse=reverse)
    generator = torch.Generator().manual_seed(1)
    objective = sum(
        (v.double() * torch.randn(v.shape, generator=generator, dtype=torch.float64)).sum()
        for v in (y, last_state)
    )
    present = {name: v for name, v in inputs.items() if v is not None}
    grads = torch.autograd.grad(objective, list(present.values()))
    return {"y": y.detach(), "last_state": last_state.detach(), **dict(zip(present, grads, strict=True))}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("options", "groups", "softplus"), [("Db", 1, True), ("", 2, False), ("D", 4, True)])
def test_equals_reference_float64(length, options, groups, softplus, reverse):
    inputs = make_inputs(length, options=options, groups=groups)
    if not softplus:  # negative step sizes would let the state grow without bound
        inputs["dt"] = inputs["dt"].detach().abs().requires_grad_()
    expected = run(ssd_scan_reference, inputs, softplus=softplus, reverse=reverse)
    actual = run(ssd_scan, inputs, softplus=softplus, reverse=reverse)
    assert actual.keys() == expected.keys()
    for key in expected:
        assert relative_error(actual[key], expected[key]) < 1e-11, key


@pytest.mark.parametrize("scan", [ssd_scan, ssd_scan_reference])
def test_reversed_scan_is_the_scan_of_reversed_tokens(scan):
    inputs = {name: x.detach() for name, x in make_inputs(19).items()}
    turned = {name: x.flip(1) if name in ("x", "dt", "B", "C") else x for name, x in inputs.items()}
    y, last_state = scan(**inputs, dt_softplus=True, return_last_state=True, reverse=True)
    expected, expected_state = scan(**turned, dt_softplus=True, return_last_state=True)
    assert relative_error(y, expected.flip(1)) < 1e-12
    assert relative_error(last_state, expected_state) < 1e-12


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scan", [ssd_scan, ssd_scan_reference])
def test_float32_error_is_that_of_its_roundings(scan, length):
    inputs = make_inputs(length, headdim=16, d_state=16, dtype=torch.float32)
    actual = run(scan, inputs)
    assert_accurate(actual, lambda x: run(ssd_scan_reference, x), inputs, roundings=length + 16 + 16)


def test_equals_the_selective_scan_with_one_decay_a_head():
    inputs = make_inputs(21, options="")
    x, dt, A, B, C = (inputs[name].detach() for name in ("x", "dt", "A", "B", "C"))
    headdim, d_state = x.shape[-1], B.shape[-1]
    y = selective_scan(
        x.flatten(2).mT,
        dt.repeat_interleave(headdim, -1).mT,
        A.repeat_interleave(headdim)[:, None].expand(-1, d_state).contiguous(),
        B.permute(0, 2, 3, 1),
        C.permute(0, 2, 3, 1),
        delta_softplus=True,
    )
    assert relative_error(ssd_scan(x, dt, A, B, C, dt_softplus=True).flatten(2).mT, y) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_accumulate_in_float32(dtype):
    inputs = make_inputs(90, dtype=dtype)
    widened = {name: v.detach().float() for name, v in inputs.items()}
    y, last_state = ssd_scan(**inputs, dt_softplus=True, return_last_state=True)
    exact, exact_state = ssd_scan(**widened, dt_softplus=True, return_last_state=True)
    assert y.dtype == dtype
    torch.testing.assert_close(last_state, exact_state, rtol=0, atol=0)
    torch.testing.assert_close(y, exact.to(dtype), rtol=0, atol=0)


def test_autocast_does_not_reach_inside():
    inputs = make_inputs(70, dtype=torch.float32)
    expected = run(ssd_scan, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(ssd_scan, inputs)
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=0)


def test_chunks_hold_few_zeros(monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK", 8)
    for length in (1, 7, 8, 9, 25, 257):
        chunks = cpu.num_chunks(length)
        chunked = cpu.cut_chunks(torch.ones(1, length, 1, 1))
        assert chunked.shape[1] == chunks
        assert chunked.shape[2] <= 8
        assert chunked.sum() == length
        assert chunked.numel() - length < chunks


def test_gradcheck():
    inputs = make_inputs(5, heads=2, headdim=2, d_state=2)
    names = list(inputs)

    def scan(*tensors):
        return ssd_scan(**dict(zip(names, tensors, strict=True)), dt_softplus=True, return_last_state=True)

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


# torch's own check reads .grad of tensors that it cloned
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_opcheck():
    arguments = tuple(make_inputs(70).values())
    torch.library.opcheck(torch.ops.timm_mvhybrid.ssd_scan.default, (*arguments, True, True, "cpu", False))
    detached = tuple(v.detach() for v in arguments)
    y, last_state, states = torch.ops.timm_mvhybrid.ssd_scan(*detached, True, True, "cpu", False)
    backward = (torch.ones_like(y), torch.ones_like(last_state), states, *detached, True, "cpu", False)
    torch.library.opcheck(torch.ops.timm_mvhybrid.ssd_scan_backward.default, backward)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda v: v[0], "`x` has shape"),
        ("x", lambda v: v[:, :0], "length ≥ 1"),
        ("dt", lambda v: v[..., :-1], "`dt` has shape"),
        ("A", lambda v: v[:-1], "`A` has shape"),
        ("B", lambda v: v.expand(-1, -1, 3, -1), "groups divides heads=4"),
        ("C", lambda v: v[..., :-1], "they must be the same"),
        ("D", lambda v: v[None], "`D` has shape"),
        ("dt_bias", lambda v: v[:-1], "`dt_bias` has shape"),
        ("x", lambda v: v.long(), "`x` has dtype torch.int64"),
    ],
)
def test_bad_arguments_are_named(name, change, message):
    inputs = {key: v.detach() for key, v in make_inputs(7).items()}
    inputs[name] = change(inputs[name])
    with pytest.raises(ValueError, match=message):
        ssd_scan(**inputs)
