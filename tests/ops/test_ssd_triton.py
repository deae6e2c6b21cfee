"""The Triton kernels of the SSD scan: in Triton's interpreter, or on a GPU where there is one."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from support.bounds import assert_accurate
from support.goldens import load_golden, relative_error

from timm_mvhybrid.layers.hydra import HydraMixer
from timm_mvhybrid.ops import ssd_scan, ssd_scan_reference, use_implementation
from timm_mvhybrid.ops.ssd import cpu
from timm_mvhybrid.ops.ssd.inputs import Inputs

triton = pytest.importorskip("triton")
kernels = pytest.importorskip("timm_mvhybrid.ops.ssd.triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias")
IN_TIME = ("y", "x", "dt", "B", "C")

TAKES_FLOAT64 = DEVICE == "cpu" and kernels.MULTIPLIES_FLOAT64
interpreted = pytest.mark.skipif(
    not TAKES_FLOAT64,
    reason="float64 runs in the interpreter of Triton 3.5 and newer alone",
)


def draw_inputs(
    length, *, batch=1, heads=2, headdim=3, d_state=5, groups=1, options="Db", dtype=torch.float64, seed=0
):
    """Draws the arguments of the scan; ``options`` names the optional ones: D, b for the bias."""
    generator = torch.Generator().manual_seed(seed)

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
    return {name: None if x is None else x.to(dtype) for name, x in inputs.items()}


def scan(**inputs):
    with use_implementation("triton"):
        return ssd_scan(**inputs)


def run(scan, inputs, *, softplus=True, reverse=False):
    """Returns y, the last state and every gradient, through both outputs."""
    generator = torch.Generator().manual_seed(1)
    inputs = {name: None if x is None else x.detach().requires_grad_() for name, x in inputs.items()}
    y, last_state = scan(**inputs, dt_softplus=softplus, return_last_state=True, reverse=reverse)
    cotangents = [torch.randn(x.shape, generator=generator).to(x) for x in (y, last_state)]
    present = {name: x for name, x in inputs.items() if x is not None}
    with use_implementation("triton"):
        grads = torch.autograd.grad((y, last_state), list(present.values()), cotangents)
    results = {"y": y.detach(), "last_state": last_state.detach(), **dict(zip(present, grads, strict=True))}
    return {name: x.cpu() for name, x in results.items()}


def on_device(inputs):
    return {name: None if x is None else x.to(DEVICE) for name, x in inputs.items()}


def draw_gradients(inputs, *, last_state=True):
    generator = torch.Generator().manual_seed(2)
    x = inputs["x"]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    state = (x.shape[0], *x.shape[2:], inputs["B"].shape[-1])
    grad_y = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    grad_last_state = torch.randn(state, generator=generator, dtype=torch.float64).to(wide)
    return grad_y, grad_last_state if last_state else None


def run_module(module, inputs, grad_y, grad_last_state, *, softplus=True, reverse=False):
    """Returns what a module's forward and backward return, the saved states apart."""
    arguments = Inputs(*(inputs[name] for name in NAMES), softplus, reverse)
    y, last_state, states = module.forward(arguments, True)
    grads = module.backward(grad_y, grad_last_state, states, arguments)
    return dict(zip(("y", "last_state", *NAMES), (y, last_state, *grads), strict=True))


def run_kernels(inputs, grad_y, grad_last_state, **options):
    moved = [None if x is None else x.to(DEVICE) for x in (grad_y, grad_last_state)]
    return run_module(kernels, on_device(inputs), *moved, **options)


def assert_like_cpu(inputs, grad_y, grad_last_state, *, limit=None, softplus=True):
    """Compares with ``cpu``, in float32 where the kernels take no float64."""
    expected = run_module(cpu, inputs, grad_y, grad_last_state, softplus=softplus)
    if not TAKES_FLOAT64:
        inputs = {
            name: x.float() if x is not None and x.dtype == torch.float64 else x for name, x in inputs.items()
        }
        grad_y, grad_last_state = (None if x is None else x.float() for x in (grad_y, grad_last_state))
    limit = limit or (1e-11 if TAKES_FLOAT64 else 1e-4)
    actual = run_kernels(inputs, grad_y, grad_last_state, softplus=softplus)
    likes = {**inputs, "y": inputs["x"]}
    for name, e in expected.items():
        a = actual[name]
        assert a.is_contiguous(), name
        if e.numel() == 0:
            assert a.shape == e.shape, name
            continue
        assert name == "last_state" or a.dtype == likes[name].dtype, name
        assert relative_error(a.cpu(), e) < limit, name


@interpreted
@pytest.mark.parametrize("name", ["e_hydra_d32_hd16_L17", "e_hydra_d64_hd32_L50"])
def test_golden_mixer(name):
    golden = load_golden(name)
    options = {key: golden.config[key] for key in ("d_state", "headdim")}
    mixer = HydraMixer(golden.config["dim"], **options, dtype=torch.float64)
    mixer.load_state_dict({key: value.double() for key, value in golden.params.items()})
    x = golden.inputs["x"].double().requires_grad_()
    with use_implementation("triton"):
        y = mixer(x)
        y.backward(golden.cotangents["y"].double())
    assert relative_error(y.detach(), golden.outputs["y"]) < 1e-10
    grads = {"input.x": x.grad, **{f"param.{key}": v.grad for key, v in mixer.named_parameters()}}
    assert grads.keys() == golden.grads.keys()
    for key, expected in golden.grads.items():
        assert relative_error(grads[key], expected) < 1e-10, key


@interpreted
@pytest.mark.parametrize(
    ("length", "options", "groups", "softplus", "reverse"),
    [
        *((length, "Db", 1, True, False) for length in (1, 2, 17, 63, 64, 65, 130)),
        *((length, "", 2, False, True) for length in (1, 2, 63, 65)),
        *((length, "D", 2, True, True) for length in (2, 17, 130)),
    ],
)
def test_equals_reference_float64(length, options, groups, softplus, reverse):
    inputs = draw_inputs(length, options=options, groups=groups)
    if not softplus:  # negative step sizes would let the state grow without bound
        inputs["dt"] = inputs["dt"].abs()
    expected = run(ssd_scan_reference, inputs, softplus=softplus, reverse=reverse)
    actual = run(scan, inputs, softplus=softplus, reverse=reverse)
    assert actual.keys() == expected.keys()
    for key in expected:
        assert relative_error(actual[key], expected[key]) < 1e-11, key


def assert_accurate_in_float32(inputs, **options):
    actual = run(scan, on_device(inputs), **options)
    length, headdim, d_state = inputs["x"].shape[1], inputs["x"].shape[-1], inputs["B"].shape[-1]
    reference = partial(run, ssd_scan_reference, **options)
    assert_accurate(actual, reference, inputs, roundings=length + headdim + d_state)


@pytest.mark.parametrize(
    ("length", "heads", "headdim"),
    [(1, 8, 16), (2, 8, 16), (17, 6, 8), (63, 4, 8), (65, 4, 8), (197, 2, 8), (257, 2, 8)],
)
def test_float32_error_is_that_of_its_roundings(length, heads, headdim):
    inputs = draw_inputs(length, heads=heads, headdim=headdim, d_state=16, dtype=torch.float32)
    inputs["A"] = -torch.linspace(0.5, 1.5, heads)
    assert_accurate_in_float32(inputs)


@pytest.mark.parametrize(("step", "rate"), [(20.0, 16.0), (0.5, 16.0), (1e-3, 1.0)])
def test_float32_error_is_that_of_its_roundings_for_fast_and_slow_decay(step, rate):
    inputs = draw_inputs(130, heads=6, headdim=8, d_state=16, options="", dtype=torch.float32)
    # by steps from none to the largest, so that a chunk both forgets at once and remembers long
    inputs["dt"] = step * torch.rand(inputs["dt"].shape, generator=torch.Generator().manual_seed(3)) ** 4
    inputs["A"] = -rate * torch.linspace(0.1, 1, 6)
    assert_accurate_in_float32(inputs, softplus=False)


def test_decays_above_the_diagonal_do_not_overflow():
    inputs = draw_inputs(64, dtype=torch.float32)
    inputs["dt"] = torch.full_like(inputs["dt"], 20)
    inputs["A"] = torch.full_like(inputs["A"], -16)
    for name, x in run(scan, on_device(inputs)).items():
        assert x.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=interpreted)])
def test_step_sizes_keep_their_relative_accuracy(dtype):
    raw = torch.cat([torch.linspace(-85, 25, 56), torch.tensor([-1e-3, -0.0, 1e-3, 19.99, 20.01])]).to(dtype)
    length = len(raw)
    # every token has a state of its own, which nothing decays: y is the step size, and its gradient the slope
    own = torch.eye(length, dtype=dtype)[None, :, None]
    ones = torch.ones(1, length, 1, 1, dtype=dtype)
    inputs = {"x": ones, "dt": raw[None, :, None], "A": torch.zeros(1, dtype=dtype), "B": own, "C": own}
    results = run_kernels({**inputs, "D": None, "dt_bias": None}, ones, None)
    raw = raw.double().requires_grad_()
    exact = torch.where(raw > 20, raw, torch.log1p(torch.exp(raw)))
    (slope,) = torch.autograd.grad(exact.sum(), raw)
    limit = 8 * torch.finfo(dtype).eps / 2
    for actual, expected in ((results["y"], exact), (results["dt"], slope)):
        assert ((actual.double().cpu().flatten() - expected).abs() / expected).max() < limit


@pytest.mark.parametrize("options", ["", "D", "b", "Db"])
@pytest.mark.parametrize("softplus", [False, True])
def test_every_combination_of_options(options, softplus):
    inputs = draw_inputs(5, options=options)
    inputs["dt"] = inputs["dt"].abs()
    inputs["dt_bias"] = None if inputs["dt_bias"] is None else inputs["dt_bias"].abs()
    assert_like_cpu(inputs, *draw_gradients(inputs, last_state=bool(options)), softplus=softplus)


@pytest.mark.parametrize("length", [1, 3, 70])
def test_reverse_is_the_scan_of_the_flipped_sequence(length):
    inputs = draw_inputs(length, groups=2, dtype=torch.float32)
    grad_y, grad_last_state = draw_gradients(inputs)
    flipped = {name: x.flip(1) if name in IN_TIME else x for name, x in inputs.items()}
    actual = run_kernels(inputs, grad_y, grad_last_state, reverse=True)
    expected = run_kernels(flipped, grad_y.flip(1), grad_last_state)
    for name, e in expected.items():
        torch.testing.assert_close(actual[name], e.flip(1) if name in IN_TIME else e, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("heads", "groups", "headdim", "d_state"),
    [(1, 1, 1, 1), (3, 3, 2, 16), (4, 2, 16, 17), (1, 1, 33, 4), (2, 2, 35, 3), (1, 1, 3, 130)],
)
def test_every_size_of_head_and_state(heads, groups, headdim, d_state):
    inputs = draw_inputs(66, heads=heads, groups=groups, headdim=headdim, d_state=d_state)
    assert_like_cpu(inputs, *draw_gradients(inputs))


@pytest.mark.parametrize("enough", [1, 3, 10**6])
def test_heads_of_a_group_are_shared_out_in_equal_parts(monkeypatch, enough):
    monkeypatch.setattr(kernels, "ENOUGH_PROGRAMS", enough)
    inputs = draw_inputs(65, heads=4, groups=1)
    assert_like_cpu(inputs, *draw_gradients(inputs))
    splits = {1: 1, 3: 2, 10**6: 4}[enough]
    arguments = Inputs(*(inputs[name] for name in NAMES), True)
    states = kernels.plan_forward(arguments, True)[-1].arguments["states"]
    launches = kernels.plan_backward(*draw_gradients(inputs), states, arguments)
    assert [launch.arguments["splits"] for launch in launches if "splits" in launch.arguments] == [splits]


def scattered(x, *, front):
    """Copies a tensor into NaN, its axes reversed in memory, its elements apart from each other and from the start."""
    sizes = [2 * size + 1 for size in reversed(x.shape)]
    buffer = torch.full((front + torch.Size(sizes).numel(),), torch.nan, dtype=x.dtype)
    view = (
        buffer[front:].view(sizes)[tuple(slice(1, None, 2) for _ in sizes)].permute(*reversed(range(x.ndim)))
    )
    return view.copy_(x)


@pytest.mark.parametrize("name", [*NAMES, "grad_y", "grad_last_state"])
def test_strided_views_are_read_as_they_lie(name):
    inputs = draw_inputs(9, batch=2, groups=2)
    grad_y, grad_last_state = draw_gradients(inputs)
    everything = {**inputs, "grad_y": grad_y, "grad_last_state": grad_last_state}
    everything[name] = scattered(everything[name], front=3)
    gradients = everything.pop("grad_y"), everything.pop("grad_last_state")
    assert_like_cpu(everything, *gradients)


def test_slices_of_a_projection_and_expanded_gradients():
    inputs = draw_inputs(17, batch=2, headdim=4, d_state=4)
    parts = [inputs["x"].flatten(2), inputs["B"].flatten(2), inputs["C"].flatten(2), inputs["dt"]]
    _, x, B, C, inputs["dt"] = torch.cat([torch.full((2, 17, 3), torch.nan), *parts], -1).split(
        [3, 8, 4, 4, 2], -1
    )
    inputs["x"], inputs["B"], inputs["C"] = x.unflatten(-1, (2, 4)), B.unsqueeze(2), C.unsqueeze(2)
    assert_like_cpu(inputs, torch.ones(1, 1, 1, 1, dtype=x.dtype).expand_as(inputs["x"]), None)


def test_offsets_beyond_32_bits(tmp_path):
    inputs = draw_inputs(2, heads=1, dtype=torch.float16)
    gradients = draw_gradients(inputs)
    x, stride = inputs["x"], 2**31 + 64
    # a sparse file: no more memory than the pages that are touched
    storage = torch.from_file(str(tmp_path / "x"), shared=True, size=stride + 3, dtype=torch.float16)
    if DEVICE == "cuda":
        storage = torch.empty(stride + 3, dtype=torch.float16, device=DEVICE)
    expected = run_kernels(inputs, *gradients)
    inputs["x"] = storage.as_strided(x.shape, (0, stride, 0, 1)).copy_(x)
    for name, a in run_kernels(inputs, *gradients).items():
        torch.testing.assert_close(a, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_results_are_within_a_few_roundings_of_the_float32_ones(dtype):
    inputs = draw_inputs(130, heads=3, headdim=16, d_state=16, dtype=dtype)
    # parameters stay in float32, as in the models
    inputs |= {name: inputs[name].float() for name in ("A", "D", "dt_bias")}
    grad_y, grad_last_state = draw_gradients(inputs)
    narrow = run_kernels(inputs, grad_y, grad_last_state)
    widened = {name: x.float() for name, x in inputs.items()}
    wide = run_kernels(widened, grad_y.float(), grad_last_state)
    likes = {**inputs, "y": inputs["x"], "last_state": grad_last_state}
    for name, exact in wide.items():
        assert narrow[name].dtype == likes[name].dtype, name
        # in units of what rounding the exact result costs, about 0.4 of the dtype's epsilon / 2
        error = (narrow[name].float() - exact).norm() / exact.norm() / (torch.finfo(dtype).eps / 2)
        assert error < 3, name


def test_float16_states_and_gradients_may_leave_its_range():
    inputs = draw_inputs(70, heads=2, headdim=4, d_state=4, dtype=torch.float16)
    inputs |= {name: inputs[name].float() for name in ("A", "D", "dt_bias")}
    inputs["B"] *= 8000
    inputs["dt"] += 16
    inputs["C"] /= 8000
    grad_y, _ = draw_gradients(inputs)
    actual = run_kernels(inputs, grad_y, None)
    assert actual["last_state"].abs().max() > torch.finfo(torch.float16).max
    widened = {name: x.float() for name, x in inputs.items()}
    expected = run_kernels(widened, grad_y.float(), None)
    for name in ("y", "last_state", "x"):
        assert relative_error(actual[name].float().cpu(), expected[name].cpu()) < 4e-3, name


def test_dtypes_may_be_mixed():
    inputs = draw_inputs(70, dtype=torch.float32)
    grad_y, grad_last_state = draw_gradients(inputs)
    dtypes = {
        "x": torch.bfloat16,
        "B": torch.float16,
        "C": torch.bfloat16,
        "D": torch.float16,
        "dt": torch.bfloat16,
    }
    mixed = {name: x.to(dtypes.get(name, torch.float32)) for name, x in inputs.items()}
    # all operands are multiplied in float32 then: what is lost is the rounding of the results
    assert_like_cpu(mixed, grad_y.bfloat16(), grad_last_state, limit=2**-7)


def test_no_states_are_saved_unless_asked_for():
    inputs = on_device(draw_inputs(130, batch=2, dtype=torch.float32))
    saved, plain = (kernels.forward(Inputs(*inputs.values(), True), save) for save in (True, False))
    assert saved[2].shape == (kernels.num_chunks(130), 2, 2, 3, 5) == (2, 2, 2, 3, 5)
    assert plain[2].shape == (0, 2, 2, 3, 5)
    torch.testing.assert_close(saved[:2], plain[:2], rtol=0, atol=0)
    # the state at a boundary is the last one of the tokens up to there
    for index, state in enumerate(saved[2]):
        stop = (index + 1) * kernels.CHUNK
        cut = {name: x[:, :stop] if name in IN_TIME else x for name, x in inputs.items()}
        torch.testing.assert_close(
            kernels.forward(Inputs(*cut.values(), True), False)[1], state, rtol=0, atol=0
        )


@pytest.mark.parametrize("name", ["x", "dt", "B", "C"])
def test_no_number_spreads_to_its_own_future_alone(name):
    inputs = on_device(draw_inputs(70, batch=2, heads=2, dtype=torch.float32))
    inputs[name] = inputs[name].clone()
    inputs[name][1, 66] = torch.nan
    y, *_ = kernels.forward(Inputs(*inputs.values(), True), False)
    earlier = torch.ones(2, 70, dtype=torch.bool, device=DEVICE)
    earlier[1, 64:] = False  # within a chunk the products are of all pairs, and 0 · NaN is NaN
    assert not y[earlier].isnan().any()
    assert y[1, 66].isnan().all()


def test_results_of_a_sequence_do_not_depend_on_its_batch():
    inputs = on_device(draw_inputs(66, batch=3, dtype=torch.float32))
    alone = {name: x[1:2] if name in IN_TIME else x for name, x in inputs.items()}
    y, last_state, _ = kernels.forward(Inputs(*inputs.values(), True), False)
    y_alone, last_state_alone, _ = kernels.forward(Inputs(*alone.values(), True), False)
    torch.testing.assert_close((y[1:2], last_state[1:2]), (y_alone, last_state_alone), rtol=0, atol=0)


def test_empty_batch():
    inputs = draw_inputs(5, batch=0, dtype=torch.float32)
    results = run_kernels(inputs, *draw_gradients(inputs))
    assert results.pop("y").shape == (0, 5, 2, 3)
    assert results.pop("last_state").shape == (0, 2, 3, 5)
    for name, grad in results.items():
        torch.testing.assert_close(grad.cpu(), torch.zeros_like(inputs[name]), rtol=0, atol=0)


@interpreted
def test_gradcheck():
    inputs = {name: x.requires_grad_() for name, x in draw_inputs(5, headdim=2, d_state=2).items()}

    def of_tensors(*tensors):
        named = dict(zip(inputs, tensors, strict=True))
        return scan(**named, dt_softplus=True, return_last_state=True)

    with use_implementation("triton"):
        assert torch.autograd.gradcheck(of_tensors, tuple(inputs.values()), fast_mode=True)


def test_inputs_are_refused_that_the_kernels_cannot_take_without_the_interpreter(monkeypatch):
    monkeypatch.setattr(kernels, "INTERPRETED", triton.language.constexpr(False))
    inputs = draw_inputs(5)
    with pytest.raises(RuntimeError, match=r'choose the "cpu" implementation, or set TRITON_INTERPRET=1'):
        kernels.forward(Inputs(*inputs.values(), True), False)
    meta = [x.to("meta") for x in inputs.values()]
    with pytest.raises(RuntimeError, match="take float64 in the interpreter alone"):
        kernels.forward(Inputs(*meta, True), False)
    monkeypatch.setattr(kernels, "INTERPRETED", triton.language.constexpr(True))
    monkeypatch.setattr(kernels, "MULTIPLIES_FLOAT64", False)
    with pytest.raises(RuntimeError, match=r"multiplies no float64 matrices.*take Triton 3\.5 or newer"):
        kernels.forward(Inputs(*inputs.values(), True), False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is built for Linux")
@pytest.mark.skipif(not hasattr(triton, "knobs"), reason="Triton 3.4 and newer are compiled for")
def test_kernels_fit_in_the_registers_at_the_size_of_the_models():
    code = """
import json, torch
from benchmarks.kernels import hydra_problem, measure_usage, ssd_variants
variants = ssd_variants("Hydra", hydra_problem(torch.bfloat16))
print(json.dumps({v.launch.kernel.__name__: measure_usage(v, 90).spilled_bytes for v in variants}))
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
    assert json.loads(result.stdout) == {
        "step_kernel": 0,
        "forward_kernel": 0,
        "state_gradient_kernel": 0,
        "group_gradient_kernel": 0,
        "head_gradient_kernel": 0,
        "step_gradient_kernel": 0,
    }
