"""The scans in functional operations: the loop's numbers, and every transform of torch.func."""

import importlib

import pytest
import torch
from support.bounds import assert_accurate
from support.goldens import relative_error
from support.scans import scan_inputs
from torch.autograd import forward_ad

from timm_mvhybrid.ops import selective_scan, selective_scan_reference, ssd_scan, ssd_scan_reference
from timm_mvhybrid.ops.transforms import wants_portable_form

LENGTHS = [1, 2, 3, 17, 63, 64, 65, 197, 257]


def ssd_inputs(
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


def run(scan, inputs, **options):
    """Returns y, the last state and every gradient, through both outputs."""
    outputs = scan(**inputs, **options, return_last_state=True)
    generator = torch.Generator().manual_seed(1)
    objective = sum(
        (v.double() * torch.randn(v.shape, generator=generator, dtype=torch.float64)).sum() for v in outputs
    )
    present = {name: v for name, v in inputs.items() if v is not None}
    grads = torch.autograd.grad(objective, list(present.values()))
    return {
        "y": outputs[0].detach(),
        "last_state": outputs[1].detach(),
        **dict(zip(present, grads, strict=True)),
    }


def portable(scan, module):
    """The public function with the portable form chosen, as while exporting."""

    def run_portable(**arguments):
        with pytest.MonkeyPatch.context() as patch:
            # by import_module, for the package's attribute of that name is the function
            patch.setattr(
                importlib.import_module(f"timm_mvhybrid.ops.{module}"), "wants_portable_form", lambda: True
            )
            return scan(**arguments)

    return run_portable


portable_selective_scan = portable(selective_scan, "selective_scan")
portable_ssd_scan = portable(ssd_scan, "ssd")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("options", "groups", "softplus", "reverse"),
    [("Dzb", None, True, False), ("", 2, False, True), ("Db", "constant", True, True), ("z", 3, True, False)],
)
def test_selective_scan_equals_the_loop_in_float64(length, options, groups, softplus, reverse):
    inputs = scan_inputs(length, options=options, groups=groups)
    arguments = dict(delta_softplus=softplus, reverse=reverse)
    expected = run(selective_scan_reference, inputs, **arguments)
    actual = run(portable_selective_scan, inputs, **arguments)
    for key, value in expected.items():
        assert relative_error(actual[key], value) < 1e-12, key


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("options", "groups", "softplus", "reverse"),
    [("Db", 1, True, False), ("", 2, False, True), ("D", 4, True, True)],
)
def test_ssd_scan_equals_the_loop_in_float64(length, options, groups, softplus, reverse):
    inputs = ssd_inputs(length, options=options, groups=groups)
    if not softplus:  # negative step sizes would let the state grow without bound
        inputs["dt"] = inputs["dt"].detach().abs().requires_grad_()
    arguments = dict(dt_softplus=softplus, reverse=reverse)
    expected = run(ssd_scan_reference, inputs, **arguments)
    actual = run(portable_ssd_scan, inputs, **arguments)
    for key, value in expected.items():
        assert relative_error(actual[key], value) < 1e-12, key


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["selective_scan", "ssd_scan"])
def test_float32_error_is_that_of_its_roundings(name, length):
    if name == "selective_scan":
        inputs = scan_inputs(length, d_inner=32, d_state=16, dtype=torch.float32)
        scan, reference, options = (
            portable_selective_scan,
            selective_scan_reference,
            dict(delta_softplus=True),
        )
    else:
        inputs = ssd_inputs(length, headdim=16, d_state=16, dtype=torch.float32)
        scan, reference, options = portable_ssd_scan, ssd_scan_reference, dict(dt_softplus=True)
    actual = run(scan, inputs, **options)
    assert_accurate(actual, lambda x: run(reference, x, **options), inputs, roundings=length + 16 + 16)


@pytest.mark.parametrize("name", ["selective_scan", "ssd_scan"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_accumulate_in_float32_under_autocast_too(name, dtype):
    if name == "selective_scan":
        inputs = scan_inputs(50, dtype=dtype)
        scan, reference, options = (
            portable_selective_scan,
            selective_scan_reference,
            dict(delta_softplus=True),
        )
    else:
        inputs = ssd_inputs(50, dtype=dtype)
        scan, reference, options = portable_ssd_scan, ssd_scan_reference, dict(dt_softplus=True)
    exact_y, exact_state = reference(
        **{key: v.detach().float() for key, v in inputs.items()}, **options, return_last_state=True
    )
    with torch.autocast("cpu", torch.bfloat16):
        y, state = scan(**inputs, **options, return_last_state=True)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    torch.testing.assert_close(state, exact_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y, exact_y.to(dtype), rtol=2**-7, atol=1e-3)


def scans():
    """Each public scan as a function of its batched tensors, with the others fixed, and an example."""
    inputs = {key: v.detach() for key, v in scan_inputs(19).items()}
    batched = ("u", "delta", "B", "C", "z")
    yield selective_scan, inputs, batched, dict(delta_softplus=True)
    yield selective_scan, inputs, batched, dict(delta_softplus=True, reverse=True)
    inputs = {key: v.detach() for key, v in ssd_inputs(70).items()}
    yield ssd_scan, inputs, ("x", "dt", "B", "C"), dict(dt_softplus=True)


SCANS = [
    pytest.param(*case, id=f"{case[0].__name__}{'-reverse' * ('reverse' in case[3])}") for case in scans()
]


@pytest.mark.parametrize(("scan", "inputs", "batched", "options"), SCANS)
def test_vmap_is_a_loop_over_the_mapped_axis(scan, inputs, batched, options):
    """Over all arguments of the batch, and over one alone."""
    shared = {key: v for key, v in inputs.items() if key not in batched}
    for mapped in (batched, batched[1:2]):
        stacked = {key: torch.stack([inputs[key], 0.5 * inputs[key].flip(0)]) for key in mapped}
        fixed = {key: inputs[key] for key in batched if key not in mapped}

        def call(stack, fixed=fixed):
            return scan(**stack, **fixed, **shared, **options)

        actual = torch.vmap(call)(stacked)
        for index in range(2):
            expected = call({key: v[index] for key, v in stacked.items()})
            torch.testing.assert_close(actual[index], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scan", "inputs", "batched", "options"), SCANS)
def test_func_grad_is_autograds_gradient(scan, inputs, batched, options):
    def objective(arguments):
        return scan(**arguments, **options).square().sum()

    actual = torch.func.grad(objective)(inputs)
    leaves = {key: v.clone().requires_grad_() for key, v in inputs.items()}
    expected = torch.autograd.grad(objective(leaves), list(leaves.values()))
    for key, value in zip(leaves, expected, strict=True):
        assert relative_error(actual[key], value) < 1e-12, key


@pytest.mark.parametrize(("scan", "inputs", "batched", "options"), SCANS)
def test_per_sample_gradients_are_those_of_single_samples(scan, inputs, batched, options):
    def objective(A, sample):
        arguments = {key: v.unsqueeze(0) for key, v in sample.items()}
        rest = {key: v for key, v in inputs.items() if key not in (*batched, "A")}
        return scan(**arguments, A=A, **rest, **options).square().sum()

    samples = {key: inputs[key] for key in batched}
    actual = torch.vmap(torch.func.grad(objective), in_dims=(None, 0))(inputs["A"], samples)
    for index in range(2):
        A = inputs["A"].clone().requires_grad_()
        loss = objective(A, {key: v[index] for key, v in samples.items()})
        (expected,) = torch.autograd.grad(loss, A)
        assert relative_error(actual[index], expected) < 1e-12


@pytest.mark.parametrize(("scan", "inputs", "batched", "options"), SCANS)
def test_jvp_is_the_transpose_of_vjp(scan, inputs, batched, options):
    generator = torch.Generator().manual_seed(2)

    def draw(like):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    def call(arguments):
        return scan(**arguments, **options)

    directions = {key: draw(v) for key, v in inputs.items()}
    y, forward = torch.func.jvp(call, (inputs,), (directions,))
    cotangent = draw(y)
    (backward,) = torch.func.vjp(call, inputs)[1](cotangent)
    by_key = [(backward[key] * directions[key]).sum() for key in inputs]
    torch.testing.assert_close((forward * cotangent).sum(), sum(by_key), rtol=1e-11, atol=1e-11)
    assert all(value.abs() > 1e-3 for value in by_key)


@pytest.mark.parametrize(("scan", "inputs", "batched", "options"), SCANS)
def test_forward_mode_without_torch_func_gives_the_same_tangent(scan, inputs, batched, options):
    direction = torch.ones_like(inputs["A"])
    _, expected = torch.func.jvp(
        lambda A: scan(**{**inputs, "A": A}, **options), (inputs["A"],), (direction,)
    )
    with forward_ad.dual_level():
        y = scan(**{**inputs, "A": forward_ad.make_dual(inputs["A"], direction)}, **options)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scan", "inputs", "batched", "options"), SCANS)
def test_forward_and_reverse_jacobians_agree(scan, inputs, batched, options):
    def of_rates(A):
        return scan(**{**inputs, "A": A}, **options)

    forward, reverse = torch.func.jacfwd(of_rates)(inputs["A"]), torch.func.jacrev(of_rates)(inputs["A"])
    assert reverse.abs().max() > 1e-3
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("scan", "inputs", "batched", "options"), SCANS)
def test_second_derivatives_are_finite_differences_of_the_first(scan, inputs, batched, options):
    def of_rates(A):
        return scan(**{**inputs, "A": A}, **options).square().sum()

    A = inputs["A"]
    direction = torch.randn(A.shape, generator=torch.Generator().manual_seed(3), dtype=A.dtype)
    gradient = torch.func.grad(of_rates)
    _, actual = torch.func.jvp(gradient, (A,), (direction,))
    step = 1e-6
    expected = (gradient(A + step * direction) - gradient(A - step * direction)) / (2 * step)
    assert relative_error(actual, expected) < 1e-6


def test_the_portable_form_is_for_exporters_and_transforms_only():
    seen = []

    def look(x):
        seen.append(wants_portable_form())
        return x * 2

    x = torch.ones(2)
    look(x)
    torch.compile(look, backend="eager", fullgraph=True)(x)
    assert seen == [False, False]
    torch.vmap(look)(x)
    torch.func.grad(lambda y: look(y).sum())(x)
    torch.func.jvp(look, (x,), (x,))
    assert seen[2:] == [True, True, True]

    class Look(torch.nn.Module):
        def forward(self, x):
            return look(x)

    torch.export.export(Look(), (x,), strict=False)
    assert all(seen[5:])
    assert len(seen) > 5
    assert not wants_portable_form()
