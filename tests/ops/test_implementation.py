"""Which implementation runs: the request, the automatic choice, and what is said when it cannot be met."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from support.scans import scan_inputs

from timm_mvhybrid import create_model, ops
from timm_mvhybrid.ops import implementation


@pytest.fixture(autouse=True)
def automatic():
    with ops.use_implementation("auto"):
        yield


def requested():
    return ops.implementation_status().requested


def scan():
    return ops.selective_scan(**scan_inputs(3))


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_function_and_context_manager():
    ops.use_implementation("cpu")
    assert requested() == "cpu"
    with ops.use_implementation("reference"):
        assert requested() == "reference"
        with ops.use_implementation("auto"):
            assert requested() == "auto"
        assert requested() == "reference"
    assert requested() == "cpu"


def test_request_is_restored_after_an_error():
    with pytest.raises(KeyError), ops.use_implementation("reference"):
        raise KeyError
    assert requested() == "auto"


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="'cuda'; expected one of auto, reference, cpu, numba, triton, mamba_ssm"
    ):
        ops.use_implementation("cuda")
    assert requested() == "auto"


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_request_reaches_both_scans(name, monkeypatch):
    ran = []
    for operation, module in (("selective_scan", ops.selective_scan), ("ssd_scan", ops.ssd_scan)):
        package = sys.modules[module.__module__]
        plain = implementation.load(operation, "cpu")
        reference = getattr(package, f"{operation}_reference")

        def note(function, label):
            def noting(*args, **kwargs):
                ran.append(label)
                return function(*args, **kwargs)

            return noting

        monkeypatch.setattr(plain, "forward", note(plain.forward, f"{operation} cpu"))
        monkeypatch.setattr(package, f"{operation}_reference", note(reference, f"{operation} reference"))
    with ops.use_implementation(name):
        scan()
        x = torch.ones(1, 3, 1, 1)
        ops.ssd_scan(x, torch.ones(1, 3, 1), -torch.ones(1), x, x)
    assert ran == [f"selective_scan {name}", f"ssd_scan {name}"]


def test_backward_runs_what_forward_ran(monkeypatch):
    plain = implementation.load("selective_scan", "cpu")
    with ops.use_implementation("cpu"):
        y = scan()
    chosen = []
    backward = plain.backward
    monkeypatch.setattr(
        plain, "backward", lambda *args, **named: chosen.append("cpu") or backward(*args, **named)
    )
    with ops.use_implementation("reference"):
        y.sum().backward()
    assert chosen == ["cpu"]


@pytest.mark.skipif(
    importlib.util.find_spec("selective_scan_cuda") is not None, reason="mamba-ssm is installed"
)
def test_missing_package_is_refused_at_the_request():
    with pytest.raises(ops.ImplementationError, match=r"mamba-ssm is not installed.*pip install mamba-ssm"):
        ops.use_implementation("mamba_ssm")
    assert requested() == "auto"


def test_triton_without_interpreter_is_refused_on_the_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    message = (
        r"'triton' was requested, but selective_scan cannot use it: the input is on cpu.*TRITON_INTERPRET=1"
    )
    monkeypatch.setattr(implementation, "_requested", "triton")
    with pytest.raises(ops.ImplementationError, match=message):
        scan()


def test_bad_environment_variable_is_named(monkeypatch):
    """At the first scan; what needs none works."""
    monkeypatch.setattr(implementation, "_requested", "cuda")
    image = torch.zeros(1, 3, 64, 64)
    create_model("test_vit12")(image)
    assert ops.implementation_status().scans[0].chosen is None
    model = create_model("test_mvhybrid")
    with ops.use_implementation("cpu"):
        model(image)
    message = "environment variable TIMM_MVHYBRID_IMPLEMENTATION is 'cuda'; expected one of auto"
    with pytest.raises(ops.ImplementationError, match=message):
        model(image)


def test_environment_variable_sets_the_request_and_raises_at_the_scan_where_it_is_unmet():
    code = (
        "import torch\n"
        "from timm_mvhybrid import ops\n"
        "print(ops.implementation_status().requested)\n"
        "x = torch.ones(1, 2, 3)\n"
        "ops.selective_scan(x, x, -torch.ones(2, 4), torch.ones(1, 4, 3), torch.ones(1, 4, 3))\n"
    )
    result = run_python(code, TIMM_MVHYBRID_IMPLEMENTATION="triton", TRITON_INTERPRET="0")
    assert result.stdout == "triton\n"
    assert "ImplementationError: implementation 'triton' was requested" in result.stderr


@pytest.mark.parametrize(
    ("installed", "device", "dtype", "expected"),
    [
        ({"selective_scan_cuda", "triton"}, "cuda", torch.float32, "mamba_ssm"),
        ({"triton"}, "cuda", torch.bfloat16, "triton"),
        (set(), "cuda", torch.float32, "cpu"),
        ({"selective_scan_cuda", "triton"}, "cuda", torch.float64, "triton"),
        ({"selective_scan_cuda", "triton"}, "cpu", torch.float32, "cpu"),
        ({"selective_scan_cuda", "triton"}, "mps", torch.float32, "cpu"),
        ({"numba", "triton"}, "cpu", torch.bfloat16, "numba"),
        ({"numba"}, "mps", torch.float32, "cpu"),
        ({"numba"}, "cuda", torch.float32, "cpu"),
    ],
)
def test_automatic_choice(installed, device, dtype, expected, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in installed or None)
    monkeypatch.setattr(implementation, "_import_failure", lambda module: None)
    assert implementation.choose("selective_scan", "auto", device, dtype) == expected


def test_package_that_cannot_be_imported_is_passed_over(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    # here selective_scan_cuda is found, so we said, but there is none to import
    reason = implementation.why_not("selective_scan", "mamba_ssm", "cuda", torch.float32)
    assert reason is not None
    assert reason.startswith("mamba_ssm is installed but cannot be imported: ModuleNotFoundError")
    assert implementation.choose("selective_scan", "auto", "cuda", torch.float32) == "triton"
    with pytest.raises(ops.ImplementationError, match="cannot be imported"):
        implementation.choose("selective_scan", "mamba_ssm", "cuda", torch.float32)


def test_status_says_why_others_are_not_taken(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status = ops.implementation_status()
    assert [(s.operation, s.device_type, s.chosen) for s in status.scans] == [
        ("selective_scan", "cpu", "cpu"),
        ("ssd_scan", "cpu", "cpu"),
        ("complex_scan", "cpu", "cpu"),
        ("causal_conv1d", "cpu", "cpu"),
    ]
    text = str(status)
    assert "selective_scan on cpu, float32: cpu" in text
    assert "not reference: could run; the automatic choice prefers the above" in text
    assert "not triton: triton is not installed" in text
    assert "not numba: numba is not installed (pip install numba)" in text
    assert "not mamba_ssm: mamba-ssm is not installed" in text
    assert "not mamba_ssm: causal-conv1d is not installed" in text


def test_status_of_a_request_that_is_met():
    with ops.use_implementation("reference"):
        assert "not cpu: could run; another was requested" in str(ops.implementation_status())


def test_status_of_a_request_that_cannot_be_met(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(implementation, "_requested", "mamba_ssm")
    status = ops.implementation_status()
    assert status.scans[0].chosen is None
    assert "none: request cannot be met" in str(status)


def test_compiled_graph_follows_the_request():
    calls = []

    def backend(graph, _inputs):
        calls.append(any("timm_mvhybrid" in str(node.target) for node in graph.graph.nodes))
        return graph

    torch.compiler.reset()
    inputs = {name: x.detach() for name, x in scan_inputs(3).items()}
    compiled = torch.compile(lambda: ops.selective_scan(**inputs), backend=backend, fullgraph=True)
    expected = compiled()
    with ops.use_implementation("reference"):
        torch.testing.assert_close(compiled(), expected)
    assert calls == [True, False]


def test_scripted_graph_refuses_the_reference():
    @torch.jit.script
    def scripted(u: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        return torch.ops.timm_mvhybrid.selective_scan(
            u, u, A, B, B, None, None, None, True, False, "current", False
        )[0]

    inputs = torch.ones(1, 3, 2), -torch.ones(2, 4), torch.ones(1, 3, 1, 4)
    assert scripted(*inputs).shape == (1, 3, 2)
    with (
        ops.use_implementation("reference"),
        pytest.raises(Exception, match="cannot run inside a scripted graph"),
    ):
        scripted(*inputs)
