"""The scan with complex pairs of poles: its forms against the loop that specifies it, and against a closed form."""

import cmath
import importlib
import math

import pytest
import torch
from support.bounds import assert_accurate
from support.goldens import relative_error
from support.scans import complex_scan_inputs

from timm_mvhybrid.ops import ImplementationError, use_implementation
from timm_mvhybrid.ops.complex_scan import complex_scan, complex_scan_portable, complex_scan_reference
from timm_mvhybrid.ops.complex_scan import cpu as complex_cpu
from timm_mvhybrid.ops.selective_scan import selective_scan_tokens

IMPLEMENTATIONS = ["cpu", "numba"]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    """Runs the test by each of the scan's implementations."""
    if request.param == "numba":
        pytest.importorskip("numba", reason="numba is not installed")
    with use_implementation(request.param):
        yield request.param


def run(scan, inputs, reverse=False):
    y = scan(**inputs, reverse=reverse)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    present = {name: x for name, x in inputs.items() if x is not None}
    grads = torch.autograd.grad((y.double() * cotangent).sum(), list(present.values()))
    return {"y": y.detach(), **dict(zip(present, grads, strict=True))}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "groups", "optional"), [(1, 2, True), (17, 1, False), (63, 3, True)])
@pytest.mark.parametrize("name", [*IMPLEMENTATIONS, "portable"])
def test_equals_reference_float64(name, length, groups, optional, reverse):
    inputs = complex_scan_inputs(length, groups=groups, optional=optional)
    expected = run(complex_scan_reference, inputs, reverse)
    if name == "portable":
        actual = run(complex_scan_portable, inputs, reverse)
    else:
        with use_implementation(name):
            actual = run(complex_scan, inputs, reverse)
    assert actual.keys() == expected.keys()
    for key in expected:
        assert relative_error(actual[key], expected[key]) < 1e-10, key


@pytest.mark.usefixtures("implementation")
def test_float32_is_as_near_to_float64_as_its_roundings_allow():
    inputs = complex_scan_inputs(63, dtype=torch.float32)

    def run_all(inputs, dtype=torch.float64):
        return run(complex_scan, inputs)

    # a step rounds twice where a real one rounds once; 6 states
    assert_accurate(run_all(inputs), run_all, inputs, roundings=2 * 63 + 6)


def test_a_batch_in_parts_equals_one_in_a_piece(monkeypatch):
    inputs = complex_scan_inputs(20, batch=5)
    with use_implementation("cpu"):
        whole = run(complex_scan, inputs)
        monkeypatch.setattr(complex_cpu, "PART_ELEMENTS", 2 * 2 * complex_cpu.CHUNK * 18)
        parts = run(complex_scan, inputs)
    for key, expected in whole.items():
        assert relative_error(parts[key], expected) < 1e-12, key


@pytest.mark.usefixtures("implementation")
def test_one_complex_pole_answers_an_impulse_by_its_closed_form():
    """After an impulse at token 0 with δ = 0.3: y_t = 2 |c b| δ exp(−λ δ t) cos(w δ t + arg c b)."""
    delta, rate, frequency, b, c = 0.3, 0.5, 2.0, 1.0 - 0.5j, 0.7 + 0.2j
    length = 40
    u = torch.zeros(1, length, 1, dtype=torch.float64)
    u[0, 0] = 1.0
    raw = torch.full_like(u, math.log(math.expm1(delta)))

    def row(value):
        return torch.tensor([value.real, value.imag], dtype=torch.float64).expand(1, length, 1, 2)

    pole = [torch.tensor([[x]], dtype=torch.float64) for x in (-rate, frequency)]
    expected = [
        2 * (c * b * delta * cmath.exp((-rate + 1j * frequency) * delta * t)).real for t in range(length)
    ]
    for scan in (complex_scan, complex_scan_portable, complex_scan_reference):
        y = scan(u, raw, *pole, row(b), row(c), None, None)
        assert relative_error(y[0, :, 0], torch.tensor(expected, dtype=torch.float64)) < 1e-13


@pytest.mark.usefixtures("implementation")
def test_poles_without_frequency_are_a_real_scan_of_twice_the_real_part():
    inputs = complex_scan_inputs(17)
    inputs["w"] = torch.zeros_like(inputs["w"])
    real = dict(inputs)
    del real["w"]
    B, C = (inputs[name].detach().clone() for name in "BC")
    C[..., 3:] = 0.0
    expected = selective_scan_tokens(
        inputs["u"],
        inputs["delta"],
        inputs["A"],
        B[..., :3],
        2 * C[..., :3],
        inputs["D"],
        None,
        inputs["delta_bias"],
    )
    assert relative_error(complex_scan(**{**inputs, "C": C}), expected) < 1e-13


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_width_inputs_are_summed_in_float32(dtype):
    inputs = complex_scan_inputs(33)
    half = {
        name: x.detach().to(torch.float32 if name in ("A", "w", "D", "delta_bias") else dtype)
        for name, x in inputs.items()
    }
    wide = {name: x.float() for name, x in half.items()}
    y = complex_scan(**half)
    assert y.dtype == dtype
    assert torch.equal(y, complex_scan(**wide).to(dtype))


def test_operators_are_registered_as_torch_wants_them(implementation):
    inputs = complex_scan_inputs(5)
    torch.library.opcheck(
        torch.ops.timm_mvhybrid.complex_scan.default,
        (*inputs.values(), True, implementation, False),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize("name", ["triton", "mamba_ssm"])
def test_a_request_that_no_kernel_can_meet_is_refused(name, monkeypatch):
    monkeypatch.setattr("timm_mvhybrid.ops.implementation._requested", name)
    inputs = complex_scan_inputs(3)
    with pytest.raises(ImplementationError, match="real eigenvalues"):
        complex_scan(**inputs)


def test_the_reference_runs_where_it_is_requested(monkeypatch):
    inputs = complex_scan_inputs(3)
    called = []
    # the package of the same name as the function
    module = importlib.import_module("timm_mvhybrid.ops.complex_scan")
    monkeypatch.setattr(module, "complex_scan_reference", lambda *_: called.append(1))
    with use_implementation("reference"):
        complex_scan(**inputs)
    assert called
