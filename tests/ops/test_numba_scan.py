"""The kernels that numba compiles: their arithmetic, the tensors they read, their threads, and what is kept on disk."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from support.forked import spawn
from support.goldens import relative_error
from support.scans import scan_inputs

from timm_mvhybrid import ops
from timm_mvhybrid.ops import selective_scan, selective_scan_reference
from timm_mvhybrid.ops.fused import native

pytest.importorskip("numba", reason="numba is not installed")
ULP = 2.0**-23


@pytest.fixture(autouse=True)
def by_numba():
    with ops.use_implementation("numba"):
        yield


def run(inputs, **options):
    """Returns y, the last state and every gradient."""
    leaves = {name: None if x is None else x.detach().requires_grad_() for name, x in inputs.items()}
    y, last_state = selective_scan(**leaves, delta_softplus=True, return_last_state=True, **options)
    present = [x for x in leaves.values() if x is not None]
    return [y.detach(), last_state.detach(), *torch.autograd.grad(y.sum() + last_state.sum(), present)]


def spread_numbers(low, high, dtype=torch.float32):
    return torch.linspace(low, high, 4001, dtype=torch.float64).to(dtype)


def test_softplus_to_a_few_units_in_the_last_place():
    delta = spread_numbers(-80.0, 60.0)
    ones = torch.ones(1, len(delta), 1)
    # no decay and one step, so that y is the step
    y = selective_scan(
        ones, delta[None, :, None], torch.zeros(len(delta), 1), ones[:, :1], ones[:, :1], delta_softplus=True
    )
    exact = torch.nn.functional.softplus(delta.double())
    # the quotient, its square, eight terms of a product each, and the sum: fewer than sixteen half units
    assert ((y[0, :, 0] - exact).abs() / exact).max() < 8 * ULP


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decays_to_a_few_units_in_the_last_place(dtype):
    exponent = spread_numbers(-80.0, 80.0, dtype)
    channels = len(exponent)
    u = torch.tensor([1.0, 0.0], dtype=dtype).expand(1, channels, 2)
    delta = torch.stack([torch.ones_like(exponent), exponent], dim=-1)[None]
    ones = torch.ones(1, 1, 2, dtype=dtype)
    y = selective_scan(u, delta, torch.ones(channels, 1, dtype=dtype), ones, ones)
    # the first state is 1, and the second what the decay leaves of it
    exact = exponent.double().exp()
    # of the exponent, a product of rounded factors, two roundings reach the result as often as it is large
    bound = torch.finfo(dtype).eps * (4 + 2 * exponent.double().abs())
    assert ((y[0, :, 1] - exact).abs() / exact <= bound).all()


def test_decays_reach_zero_and_infinity_as_the_reference_does():
    exponent = torch.tensor([-torch.inf, -1e30, -200.0, 88.0, 88.72, 89.0, 1e30, torch.inf, torch.nan])
    channels = len(exponent)
    inputs = (
        torch.tensor([1.0, 0.0]).expand(1, channels, 2),
        torch.stack([torch.ones_like(exponent), exponent], dim=-1)[None],
        torch.ones(channels, 1),
        torch.ones(1, 1, 2),
        torch.ones(1, 1, 2),
    )
    torch.testing.assert_close(
        selective_scan(*inputs), selective_scan_reference(*inputs), rtol=1e-4, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "z", "D", "delta_bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spreads_as_in_the_reference(name, value):
    inputs = {
        key: x.detach()
        for key, x in scan_inputs(20, batch=1, d_inner=19, options="Dzb", dtype=torch.float32).items()
    }
    inputs[name].view(-1)[inputs[name].numel() // 2] = value
    actual = selective_scan(**inputs, delta_softplus=True)
    expected = selective_scan_reference(**inputs, delta_softplus=True)
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.isposinf(), expected.isposinf())
    assert torch.equal(actual.isneginf(), expected.isneginf())


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("length", "d_inner", "groups"), [(1, 16, 1), (15, 32, 2), (16, 17, 1), (17, 40, 2), (1025, 16, 1)]
)
def test_widths_and_lengths(length, d_inner, groups, reverse):
    inputs = scan_inputs(length, batch=2, d_inner=d_inner, d_state=3, groups=groups, options="Dzb")
    actual = run(inputs, reverse=reverse)
    with ops.use_implementation("reference"):
        expected = run(inputs, reverse=reverse)
    for value, exact in zip(actual, expected, strict=True):
        assert relative_error(value, exact) < 1e-12


def test_tensors_may_be_views_of_wider_ones():
    inputs = scan_inputs(9, d_inner=16, options="Dzb")
    expected = run(inputs)
    wide = torch.cat([inputs["u"].detach().mT, inputs["z"].detach().mT], dim=-1)
    u, z = wide.chunk(2, dim=-1)
    for value, exact in zip(run({**inputs, "u": u.mT, "z": z.mT}), expected, strict=True):
        assert torch.equal(value, exact)


def test_dtypes_may_differ():
    inputs = scan_inputs(33, d_inner=20, options="Dzb", dtype=torch.float32)
    narrow = {"u": torch.bfloat16, "z": torch.bfloat16, "B": torch.float16}
    inputs = {name: x.detach().to(narrow.get(name, x.dtype)) for name, x in inputs.items()}
    actual = run(inputs)
    expected = run({name: x.float() for name, x in inputs.items()})
    assert actual[0].dtype == torch.bfloat16
    for name, value, exact in zip(("y", "last_state", *inputs), actual, expected, strict=True):
        # y.sum() gives the same cotangent, so that only the results are rounded
        torch.testing.assert_close(value, exact.to(value.dtype), rtol=0, atol=0, msg=name)


def test_threads_do_not_change_what_each_computes(threads, monkeypatch):
    inputs = scan_inputs(40, batch=3, d_inner=48, options="Dzb", dtype=torch.float32)
    threads(1)
    alone = run(inputs)
    threads(2)
    for team in (native._team(), None):
        monkeypatch.setattr(native, "_team", lambda team=team: team)
        for value, exact in zip(run(inputs), alone, strict=True):
            assert torch.equal(value, exact)
    # fewer rows than threads: the channels are shared, and their sums are taken in another order
    threads(4)
    one = scan_inputs(40, batch=1, d_inner=48, options="Dzb")
    shared = run(one)
    threads(1)
    for value, exact in zip(shared, run(one), strict=True):
        assert relative_error(value, exact) < 1e-13


def test_several_threads_of_python(threads):
    threads(2)
    inputs = scan_inputs(40, batch=3, d_inner=48, options="Dzb", dtype=torch.float32)
    expected, found = run(inputs), []
    workers = [threading.Thread(target=lambda: found.append(run(inputs))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    for results in found:
        for value, exact in zip(results, expected, strict=True):
            assert torch.equal(value, exact)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_after_a_fork():
    spawn(_scan_before_and_after_a_fork, nprocs=1)


def _scan_before_and_after_a_fork(rank):
    torch.set_num_threads(2)
    x = torch.arange(2 * 64 * 40.0).view(2, 64, 40) / 5000

    def scan():
        with ops.use_implementation("numba"):
            return ops.selective_scan(x, x, -torch.ones(64, 4), x[:, :4], x[:, 4:8], delta_softplus=True)

    expected = scan()
    if not (child := os.fork()):
        os._exit(0 if torch.equal(scan(), expected) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_plain_torch_runs_where_numba_is_missing():
    code = (
        "import sys\n"
        "sys.modules['numba'] = None\n"
        "import torch\n"
        "from timm_mvhybrid import ops\n"
        "x = torch.ones(1, 2, 3)\n"
        "ops.selective_scan(x, x, -torch.ones(2, 4), torch.ones(1, 4, 3), torch.ones(1, 4, 3))\n"
        "print(ops.implementation_status().scans[0].chosen)\n"
        "ops.use_implementation('numba')\n"
    )
    environment = {**os.environ, "TIMM_MVHYBRID_IMPLEMENTATION": "auto"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout == "cpu\n"
    assert "implementation 'numba' cannot run here: numba is not installed" in result.stderr


def test_status_names_the_choice():
    with ops.use_implementation("auto"):
        status = ops.implementation_status()
    assert [scan.chosen for scan in status.scans[:3]] == ["numba"] * 3


@pytest.fixture
def small_kernel(kernel_module):
    """The folder of a kernel that adds its first two arguments, in a module that was never compiled."""
    return kernel_module(
        "small_kernel",
        "from timm_mvhybrid.ops.fused.lanes import load_integer, store\n"
        "def make_sum(stamp):\n"
        "    def kernel(p):\n"
        "        if stamp:\n"
        "            store(load_integer(p + 32), float(load_integer(p + 16) + load_integer(p + 24)))\n"
        "    return kernel\n",
    )


def add(a, b):
    result = torch.full([1], torch.nan, dtype=torch.float64)
    native.compiled("small_kernel", "sum").run([a, b, result.data_ptr()], 1)
    return result.item()


def test_kernels_are_kept_on_disk(small_kernel):
    assert add(2, 3) == 5
    assert native.cache_failure() is None
    assert list(small_kernel.glob("**/*.nbi"))


def test_folder_that_cannot_be_written_to_costs_only_time(small_kernel, monkeypatch):
    from numba.core import caching

    # what numba does where it finds none of its folders writable
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert add(2, 3) == 5
    assert "no locator available" in native.cache_failure()
    assert not list(small_kernel.glob("**/*.nbi"))
    assert "compiled again in each process" in str(ops.implementation_status())
