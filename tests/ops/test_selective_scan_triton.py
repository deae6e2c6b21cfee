"""The Triton kernels of the selective scan: in Triton's interpreter, or on a GPU where there is one."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.bounds import assert_accurate
from support.goldens import load_golden, relative_error
from support.scans import scan_inputs

from timm_mvhybrid.ops import selective_scan, selective_scan_reference, use_implementation
from timm_mvhybrid.ops.selective_scan import cpu
from timm_mvhybrid.ops.selective_scan.inputs import Inputs

triton = pytest.importorskip("triton")
kernels = pytest.importorskip("timm_mvhybrid.ops.selective_scan.triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def scan(**inputs):
    with use_implementation("triton"):
        return selective_scan(**inputs)


def run(scan, inputs, *, softplus=True):
    """Returns y, the last state and every gradient, through both outputs."""
    generator = torch.Generator().manual_seed(1)
    y, last_state = scan(**inputs, delta_softplus=softplus, return_last_state=True)
    cotangents = [torch.randn(x.shape, generator=generator).to(x) for x in (y, last_state)]
    present = {name: x for name, x in inputs.items() if x is not None}
    with use_implementation("triton"):
        grads = torch.autograd.grad((y, last_state), list(present.values()), cotangents)
    results = {"y": y.detach(), "last_state": last_state.detach(), **dict(zip(present, grads, strict=True))}
    return {name: x.cpu() for name, x in results.items()}


def on_device(inputs, dtype=None):
    return {
        name: None if x is None else x.detach().to(DEVICE, dtype).requires_grad_()
        for name, x in inputs.items()
    }


def token_major(length, *, batch=2, d_inner=6, d_state=3, groups=1, options="Dzb", dtype=torch.float64):
    """Draws the arguments of ``forward``, and of ``backward`` the first two, in the layout of the kernels."""
    drawn = scan_inputs(
        length, batch=batch, d_inner=d_inner, d_state=d_state, groups=groups, options=options, dtype=dtype
    )
    drawn = {name: None if x is None else x.detach() for name, x in drawn.items()}
    for name in ("u", "delta", "z"):
        drawn[name] = None if drawn[name] is None else drawn[name].transpose(1, 2).contiguous()
    for name in ("B", "C"):
        drawn[name] = drawn[name].permute(0, 3, 1, 2).contiguous()
    generator = torch.Generator().manual_seed(2)
    grad_y = torch.randn(batch, length, d_inner, generator=generator, dtype=torch.float64).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (batch, groups, d_state, d_inner // groups)
    grad_last_state = torch.randn(shape, generator=generator, dtype=torch.float64).to(wide)
    return [drawn[name] for name in NAMES], grad_y, grad_last_state


def run_module(module, arguments, grad_y, grad_last_state, softplus=True, reverse=False):
    """Returns what a module's forward and backward return, the saved states apart."""
    inputs = Inputs(*arguments, softplus, reverse)
    y, last_state, states = module.forward(inputs, True)
    grads = module.backward(grad_y, grad_last_state, states, inputs)
    return y, last_state, *grads


def assert_like_cpu(arguments, grad_y, grad_last_state, softplus=True, limit=1e-12):
    expected = run_module(cpu, arguments, grad_y, grad_last_state, softplus)
    moved = [None if x is None else x.to(DEVICE) for x in (*arguments, grad_y, grad_last_state)]
    actual = run_module(kernels, moved[:8], *moved[8:], softplus)
    for name, a, e in zip(("y", "last_state", *NAMES), actual, expected, strict=True):
        assert a.dtype == e.dtype, name
        assert a.is_contiguous(), name
        if e.numel() == 0:
            assert a.shape == e.shape, name
        else:
            assert relative_error(a.cpu(), e) < limit, name


@pytest.mark.parametrize(
    "name", ["a_selscan_L1", "a_selscan_L17", "a_selscan_L17_nobias_nosoftplus_grouped", "a_selscan_L50"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(name, dtype):
    golden = load_golden(name)

    def run_all(scan, inputs):
        y, last_state = scan(**inputs, delta_softplus=golden.config["delta_softplus"], return_last_state=True)
        y.backward(golden.cotangents["y"].to(y))
        grads = {f"input.{key}": x.grad.cpu() for key, x in inputs.items()}
        return {"y": y.detach().cpu(), "last_state": last_state.detach().cpu(), **grads}

    actual, exact = run_all(scan, on_device(golden.inputs, dtype)), {**golden.outputs, **golden.grads}
    if dtype == torch.float64:
        assert actual.keys() == exact.keys()
        for key, value in exact.items():
            assert relative_error(actual[key], value) < 1e-10, key
    else:
        length, d_state = golden.inputs["u"].shape[-1], golden.inputs["A"].shape[-1]
        inputs = {key: x.requires_grad_() for key, x in golden.inputs.items()}
        reference = partial(run_all, selective_scan_reference)
        assert_accurate(actual, reference, inputs, roundings=length + d_state, exact=exact)


@pytest.mark.parametrize(
    ("length", "options", "groups", "softplus"),
    [
        *((length, "Dzb", None, True) for length in (1, 2, 17, 63)),
        *((length, "", 2, False) for length in (1, 2, 17, 63)),
        *((length, "z", 3, True) for length in (2, 17)),
        (2, "Db", "constant", True),
    ],
)
def test_equals_reference_float64(length, options, groups, softplus):
    batch = 2 if length < 17 else 1
    inputs = on_device(scan_inputs(length, batch=batch, options=options, groups=groups))
    expected = run(selective_scan_reference, inputs, softplus=softplus)
    actual = run(scan, inputs, softplus=softplus)
    assert actual.keys() == expected.keys()
    for key in expected:
        assert relative_error(actual[key], expected[key]) < 1e-12, key


@pytest.mark.parametrize(("length", "d_inner"), [(1, 96), (2, 96), (17, 32), (63, 16), (257, 16)])
def test_float32_error_is_that_of_its_roundings(length, d_inner):
    inputs = scan_inputs(length, batch=1, d_inner=d_inner, d_state=16, dtype=torch.float32, seed=2)
    actual = run(scan, on_device(inputs))
    assert_accurate(actual, lambda x: run(selective_scan_reference, x), inputs, roundings=length + 16)


@pytest.mark.parametrize("options", ["", "D", "z", "b", "Dzb"])
@pytest.mark.parametrize("softplus", [False, True])
def test_every_combination_of_options(options, softplus):
    arguments, grad_y, grad_last_state = token_major(5, batch=1, options=options)
    assert_like_cpu(arguments, grad_y, grad_last_state if options else None, softplus)


@pytest.mark.parametrize("length", [1, 11])
def test_reverse_is_the_scan_of_the_flipped_sequence(length):
    in_time = ("y", "u", "delta", "B", "C", "z")
    arguments, grad_y, grad_last_state = token_major(length, batch=1, groups=2)
    flipped = [x.flip(1) if name in in_time else x for name, x in zip(NAMES, arguments, strict=True)]
    inputs = [x.to(DEVICE) for x in (*arguments, grad_y, grad_last_state)]
    flipped_inputs = [x.to(DEVICE) for x in (*flipped, grad_y.flip(1), grad_last_state)]
    actual = run_module(kernels, inputs[:8], *inputs[8:], reverse=True)
    expected = run_module(kernels, flipped_inputs[:8], *flipped_inputs[8:])
    for name, a, e in zip(("y", "last_state", *NAMES), actual, expected, strict=True):
        torch.testing.assert_close(a, e.flip(1) if name in in_time else e, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("d_inner", "d_state", "groups"),
    [
        (1, 1, 1),
        (3, 2, 3),
        (40, 2, 2),
        (17, 4, 1),
        (34, 16, 2),
        (33, 5, 3),
        (9, 20, 1),
        (10, 70, 1),
        (9, 256, 1),
    ],
)
def test_every_size_of_state_and_block(d_inner, d_state, groups):
    assert_like_cpu(*token_major(6, batch=1, d_inner=d_inner, d_state=d_state, groups=groups))


def scattered(x, *, front):
    """Copies a tensor into NaN, its axes reversed in memory, its elements apart from each other and from the start."""
    sizes = [2 * size + 1 for size in reversed(x.shape)]
    buffer = torch.full((front + torch.Size(sizes).numel(),), torch.nan, dtype=x.dtype)
    view = (
        buffer[front:].view(sizes)[tuple(slice(1, None, 2) for _ in sizes)].permute(*reversed(range(x.ndim)))
    )
    return view.copy_(x)


@pytest.mark.parametrize(
    "name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "grad_y", "grad_last_state"]
)
def test_strided_views_are_read_as_they_lie(name):
    arguments, grad_y, grad_last_state = token_major(5, batch=2, d_inner=4, groups=2)
    inputs = [*arguments, grad_y, grad_last_state]
    position = (*NAMES, "grad_y", "grad_last_state").index(name)
    inputs[position] = scattered(inputs[position], front=3)
    assert_like_cpu(inputs[:8], *inputs[8:])


def test_slices_of_projections_and_expanded_gradients():
    (u, delta, A, B, C, D, z, bias), grad_y, _ = token_major(9, batch=2, d_inner=20, d_state=4)
    xz = torch.cat([u, z], dim=-1)
    projected = torch.cat([torch.full((2, 9, 3), torch.nan).double(), B[:, :, 0], C[:, :, 0]], dim=-1)
    _, B, C = projected.split([3, 4, 4], dim=-1)
    u, z = xz.chunk(2, dim=-1)
    delta = delta.transpose(1, 2).contiguous().transpose(1, 2)
    grad_y = grad_y[:1, :1, :1].expand_as(u)
    assert_like_cpu([u, delta, A, B.unsqueeze(2), C.unsqueeze(2), D, z, bias], grad_y, None)


def test_offsets_beyond_32_bits(tmp_path):
    (u, *others), grad_y, _ = token_major(2, batch=1, dtype=torch.float16)
    stride = 2**31 + 64
    # a sparse file: no more memory than the pages that are touched
    storage = torch.from_file(str(tmp_path / "u"), shared=True, size=stride + 6, dtype=torch.float16)
    far = storage.as_strided(u.shape, (0, stride, 1)).copy_(u)
    if DEVICE == "cuda":
        far = torch.empty(stride + 6, dtype=torch.float16, device=DEVICE).as_strided(u.shape, far.stride())
        far.copy_(u)
    moved = [None if x is None else x.to(DEVICE) for x in (*others, grad_y)]
    expected = run_module(cpu, [u, *others], grad_y, None)
    actual = run_module(kernels, [far, *moved[:-1]], moved[-1], None)
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a.cpu(), e) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_accumulate_in_float32(dtype):
    arguments, grad_y, grad_last_state = token_major(23, batch=1, d_inner=16, d_state=16, dtype=dtype)
    # parameters stay in float32, as in the models
    arguments = [
        x.float() if name in ("A", "D", "delta_bias") else x for name, x in zip(NAMES, arguments, strict=True)
    ]
    moved = [x.to(DEVICE) for x in (*arguments, grad_y, grad_last_state)]
    narrow = run_module(kernels, moved[:8], *moved[8:])
    wide = run_module(kernels, [x.float() for x in moved[:8]], moved[8].float(), moved[9])
    like = (moved[0], moved[9], *moved[:8])
    # the interpreter cuts bfloat16 off where a GPU rounds
    ulp = 2**-7 if dtype == torch.bfloat16 and DEVICE == "cpu" else 0
    for name, n, w, x in zip(("y", "last_state", *NAMES), narrow, wide, like, strict=True):
        assert n.dtype == x.dtype, name
        torch.testing.assert_close(n, w.to(x.dtype), rtol=ulp, atol=0)


def test_dtypes_may_be_mixed():
    arguments, grad_y, grad_last_state = token_major(9, batch=1, dtype=torch.float32)
    u, delta, A, B, C, D, z, bias = arguments
    mixed = [u.bfloat16(), delta, A, B.half(), C.bfloat16(), D.half(), z.half(), bias.bfloat16()]
    assert_like_cpu(mixed, grad_y.bfloat16(), grad_last_state, limit=2e-2)


def test_no_states_are_saved_unless_asked_for():
    arguments, *_ = token_major(19)
    inputs = Inputs(*(x.to(DEVICE) for x in arguments), True)
    saved, plain = (kernels.forward(inputs, save) for save in (True, False))
    assert saved[2].shape == (kernels.num_chunks(19), 2, 1, 3, 6)
    assert not saved[2].isnan().any()
    assert plain[2].shape == (0, 2, 1, 3, 6)
    torch.testing.assert_close(saved[:2], plain[:2], rtol=0, atol=0)


def test_backward_starts_from_the_saved_states():
    arguments, grad_y, _ = token_major(11, d_inner=4)
    inputs = Inputs(*(x.to(DEVICE) for x in arguments), True)
    _, _, states = kernels.forward(inputs, True)
    grad_C = kernels.backward(grad_y.to(DEVICE), None, states, inputs)[4]
    states += 1
    changed = (kernels.backward(grad_y.to(DEVICE), None, states, inputs)[4] != grad_C).flatten(2).all(-1)
    assert changed.all()


def test_results_of_a_sequence_do_not_depend_on_its_batch():
    arguments, *_ = token_major(9, batch=3, d_inner=20, dtype=torch.float32)
    moved = [x.to(DEVICE) for x in arguments]
    alone = [
        x[1:2] if name in ("u", "delta", "B", "C", "z") else x for name, x in zip(NAMES, moved, strict=True)
    ]
    y, last_state, _ = kernels.forward(Inputs(*moved, True), False)
    y_alone, last_state_alone, _ = kernels.forward(Inputs(*alone, True), False)
    torch.testing.assert_close((y[1:2], last_state[1:2]), (y_alone, last_state_alone), rtol=0, atol=0)


def softplus_by_scan(delta):
    """Reads the step sizes and their derivative off a scan that has one step, one state and no decay."""
    x = delta.to(DEVICE)[None, None].requires_grad_()
    ones = torch.ones_like(x)[..., :1, None]
    zeros = torch.zeros(len(delta), 1, dtype=delta.dtype, device=DEVICE)
    inputs = Inputs(torch.ones_like(x), x, zeros, ones, ones, None, None, None, True)
    y, _, states = kernels.forward(inputs, True)
    slope = kernels.backward(torch.ones_like(y), None, states, inputs)[1]
    return y.detach().flatten().cpu(), slope.flatten().cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_sizes_keep_their_relative_accuracy(dtype):
    delta = torch.cat([torch.linspace(-85, 25, 441), torch.tensor([-1e-3, -0.0, 1e-3, 19.99, 20.01])]).to(
        dtype
    )
    delta = delta.double().requires_grad_()
    exact = torch.where(delta > 20, delta, torch.log1p(torch.exp(delta)))
    (slope,) = torch.autograd.grad(exact.sum(), delta)
    y, derivative = softplus_by_scan(delta.detach().to(dtype))
    limit = 8 * torch.finfo(dtype).eps / 2
    assert ((y.double() - exact).abs() / exact).max() < limit
    assert ((derivative.double() - slope).abs() / slope).max() < limit


@pytest.mark.filterwarnings(
    "ignore:(invalid value|overflow) encountered:RuntimeWarning"
)  # numpy's, in the interpreter
def test_step_sizes_far_out_and_of_no_number():
    delta = torch.tensor([-torch.inf, -1e30, 1e30, torch.nan])
    y, slope = softplus_by_scan(delta)
    torch.testing.assert_close(y, F.softplus(delta), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(slope, torch.tensor([0, 0, 1, torch.nan]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["u", "delta", "B", "z"])
def test_no_number_spreads_to_its_own_future_alone(name):
    arguments, *_ = token_major(11, batch=2, d_inner=18)
    position = NAMES.index(name)
    arguments[position] = arguments[position].clone()
    arguments[position][1, 5] = torch.nan
    moved = [x.to(DEVICE) for x in arguments]
    y, *_ = kernels.forward(Inputs(*moved, True), False)
    expected = torch.zeros(2, 11, dtype=torch.bool, device=DEVICE)
    expected[1, 5 : 6 if name == "z" else None] = True
    assert torch.equal(y.isnan().any(-1), expected)
    assert torch.equal(y.isnan().all(-1), expected)


def test_empty_batch():
    arguments, grad_y, grad_last_state = token_major(5, batch=0)
    moved = [x.to(DEVICE) for x in (*arguments, grad_y, grad_last_state)]
    y, last_state, *grads = run_module(kernels, moved[:8], *moved[8:])
    assert y.shape == (0, 5, 6)
    assert last_state.shape == (0, 1, 3, 6)
    for grad, x in zip(grads, moved[:8], strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(x), rtol=0, atol=0)


def test_cpu_tensors_are_refused_without_the_interpreter(monkeypatch):
    kernel = kernels.forward_kernel
    monkeypatch.setattr(
        kernels, "forward_kernel", kernel if DEVICE == "cuda" else triton.JITFunction(kernel.fn)
    )
    arguments, *_ = token_major(5)
    with pytest.raises(RuntimeError, match=r'choose the "cpu" implementation, or set TRITON_INTERPRET=1'):
        kernels.forward(Inputs(*arguments, True), False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is built for Linux")
@pytest.mark.skipif(not hasattr(triton, "knobs"), reason="Triton 3.4 and newer are compiled for")
def test_kernels_fit_in_the_registers_at_the_size_of_the_models():
    code = """
import json, torch
from benchmarks.kernels import mambavision_problem, measure_usage, selective_scan_variants
variants = list(selective_scan_variants("MambaVision", mambavision_problem(torch.bfloat16)))
print(json.dumps([(v.launch.kernel.__name__, measure_usage(v, 90).spilled_bytes) for v in variants[1:]]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [["forward_kernel", 0], ["backward_kernel", 0]]
