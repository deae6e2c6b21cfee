"""The kernels of the scan with complex poles: their sine and cosine, the tensors that they read, their threads."""

import pytest
import torch
from support.goldens import relative_error
from support.scans import complex_scan_inputs

from timm_mvhybrid import ops
from timm_mvhybrid.ops.complex_scan import complex_scan, complex_scan_reference

pytest.importorskip("numba", reason="numba is not installed")


@pytest.fixture(autouse=True)
def by_numba():
    with ops.use_implementation("numba"):
        yield


def run(inputs, scan=complex_scan, **options):
    """Returns y and every gradient."""
    leaves = {name: None if x is None else x.detach().requires_grad_() for name, x in inputs.items()}
    y = scan(**leaves, **options)
    present = [x for x in leaves.values() if x is not None]
    return [y.detach(), *torch.autograd.grad(y.sum(), present)]


def turned(angles):
    """Turns a state of 1 by angles, one a channel, without decay; returns cosine and sine."""
    channels, dtype = len(angles), angles.dtype
    # a step so large that softplus leaves it alone, and the second 1 / 32 of it
    step = torch.tensor([32.0, 32.0], dtype=dtype)
    delta = step[None, :, None].expand(1, 2, channels)
    u = torch.tensor([1 / 32, 0.0], dtype=dtype)[None, :, None].expand(1, 2, channels)
    b = torch.tensor([1.0, 0.0], dtype=dtype).expand(1, 2, 1, 2)
    found = []
    for c in ([0.5, 0.0], [0.0, -0.5]):
        C = torch.tensor(c, dtype=dtype).expand(1, 2, 1, 2)
        poles = torch.zeros(channels, 1, dtype=dtype), angles[:, None] / 32
        found.append(complex_scan(u, delta, *poles, b, C, None, None)[0, 1])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("most", [1e-3, 4.0, 100.0, 1e5])
def test_turns_to_a_few_units_in_the_last_place(dtype, most):
    angles = torch.linspace(-most, most, 4001, dtype=torch.float64).to(dtype)
    exact = angles.double()
    # w / π and its product with the step are rounded, and the polynomial's sum rounds less than 4 of numbers up to 3
    bound = torch.finfo(dtype).eps * (4 + 2 * exact.abs())
    for value, expected in zip(turned(angles), (exact.cos(), exact.sin()), strict=True):
        assert ((value.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_turns_are_turns_however_large_the_angle(dtype):
    limit = torch.finfo(dtype).max
    angles = torch.tensor([1e6, 1e7, 1e8, 1e12, 1e17, 1e30, limit / 64, -limit / 64], dtype=dtype)
    cosine, sine = turned(angles)
    assert ((cosine.double().square() + sine.double().square() - 1).abs() < 1e-6).all()
    for part in turned(torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=dtype)):
        assert part.isnan().all()


@pytest.mark.parametrize("name", ["u", "delta", "A", "w", "B", "C", "D", "delta_bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_as_in_plain_torch(name, value):
    inputs = {key: x.detach() for key, x in complex_scan_inputs(20, batch=1, d_inner=19).items()}
    inputs[name].view(-1)[inputs[name].numel() // 2] = value
    actual = complex_scan(**inputs)
    with ops.use_implementation("cpu"):
        expected = complex_scan(**inputs)
    assert torch.equal(actual.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    torch.testing.assert_close(actual[finite], expected[finite], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("length", "d_inner", "groups"), [(1, 16, 1), (15, 32, 2), (16, 17, 1), (17, 40, 2), (1025, 16, 1)]
)
def test_widths_and_lengths(length, d_inner, groups, reverse):
    inputs = complex_scan_inputs(length, d_inner=d_inner, groups=groups)
    actual = run(inputs, reverse=reverse)
    expected = run(inputs, complex_scan_reference, reverse=reverse)
    for value, exact in zip(actual, expected, strict=True):
        assert relative_error(value, exact) < 1e-12


def test_nothing_to_scan():
    inputs = {
        name: x.detach()[:0] if name in ("u", "delta", "B", "C") else x.detach()
        for name, x in complex_scan_inputs(5).items()
    }
    for value, like in zip(run(inputs), (inputs["u"], *inputs.values()), strict=True):
        assert value.shape == like.shape
        assert not value.any()


def test_tensors_may_be_views_of_wider_ones():
    inputs = complex_scan_inputs(9, d_inner=16)
    expected = run(inputs)
    wide = torch.cat([inputs["u"].detach(), inputs["delta"].detach()], dim=-1)
    u, delta = wide.chunk(2, dim=-1)
    for value, exact in zip(run({**inputs, "u": u, "delta": delta}), expected, strict=True):
        assert torch.equal(value, exact)


def test_dtypes_may_differ():
    inputs = complex_scan_inputs(33, d_inner=20, dtype=torch.float32)
    narrow = {"u": torch.bfloat16, "delta": torch.bfloat16, "B": torch.float16}
    inputs = {name: x.detach().to(narrow.get(name, x.dtype)) for name, x in inputs.items()}
    actual = run(inputs)
    expected = run({name: x.float() for name, x in inputs.items()})
    assert actual[0].dtype == torch.bfloat16
    for name, value, exact in zip(("y", *inputs), actual, expected, strict=True):
        # y.sum() gives the same cotangent, so that only the results are rounded
        torch.testing.assert_close(value, exact.to(value.dtype), rtol=0, atol=0, msg=name)


def test_threads_do_not_change_what_each_computes(threads):
    inputs = complex_scan_inputs(40, batch=3, d_inner=48, dtype=torch.float32)
    threads(1)
    alone = run(inputs)
    threads(2)
    for value, exact in zip(run(inputs), alone, strict=True):
        assert torch.equal(value, exact)
    # fewer rows than threads: the channels are shared, and their sums are taken in another order
    threads(4)
    one = complex_scan_inputs(40, batch=1, d_inner=48)
    shared = run(one)
    threads(1)
    for value, exact in zip(shared, run(one), strict=True):
        assert relative_error(value, exact) < 1e-13


def test_status_names_the_kernels_and_why_no_others():
    with ops.use_implementation("auto"):
        scan = next(s for s in ops.implementation_status().scans if s.operation == "complex_scan")
    assert scan.chosen == "numba"
    assert "real eigenvalues" in scan.others["triton"]
    assert "real eigenvalues" in scan.others["mamba_ssm"]
