"""The benchmarks run from the command line, find their peers, and feed the README."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import __main__ as command_line
from benchmarks import cohort_memory, export, gpu_scans, peers, processes, provenance, readme, scan, wheels
from benchmarks.measure import Spread
from benchmarks.problems import Peer, check_peer, selective_scan_problem
from support.reports import a_provenance, point, small_report

from timm_mvhybrid.data import Slide


@pytest.fixture
def quiet(monkeypatch):
    """Spares the second in which the machine is watched, and keeps Triton's interpreter out."""
    monkeypatch.setattr(provenance, "_busy_cores", lambda: 0.0)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_a_missing_peer_is_named_and_leaves_its_goals_unjudged(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "mambapy.mamba", None)
    monkeypatch.setattr(scan, "torch_associative_scan", lambda: scan.token_major_scan)
    found, notes = scan.find_peers()
    names = ["ours", "ours, channel-major input", "ours, plain torch", "torch associative_scan"]
    assert [peer.name for peer in found] == names
    assert any("mamba_ssm: not installed; make bench-install" in note for note in notes)
    assert any("mambapy: not installed" in note and "pip install mambapy" in note for note in notes)


def test_mamba_ssm_is_read_without_its_extension_and_its_own_init(tmp_path, monkeypatch):
    files = {
        "__init__.py": "raise ImportError('needs a GPU')",
        "ops/__init__.py": "",
        "ops/triton/__init__.py": "",
        "ops/triton/layer_norm.py": "raise ImportError('needs Triton')",
        "ops/selective_scan_interface.py": (
            "from mamba_ssm.ops.triton.layer_norm import _layer_norm_fwd\nimport selective_scan_cuda\n"
            "from mamba_ssm.answer import answer\n"
            "def selective_scan_ref(u, *others, delta_bias, delta_softplus):\n"
            "    return u * answer if delta_softplus else None\n"
        ),
        "answer.py": "answer = 42",
    }
    for name, text in files.items():
        path = tmp_path / "mamba_ssm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(sys.modules)
    function = peers.mamba_ssm_reference()
    assert function(*[torch.ones(1)] * 7).item() == 42
    changed = {name for name in {*before, *sys.modules} if before.get(name) is not sys.modules.get(name)}
    assert not [name for name in changed if name.startswith(("mamba_ssm", "selective_scan_cuda"))]


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="older torch compiles it first"
)
def test_torchs_associative_scan_computes_the_selective_scan():
    problem = selective_scan_problem(2, 3, 6, 4)
    peer = Peer(name="peer", scan=peers.torch_associative_scan(), token_major=True)
    check_peer(peer, problem, problem.exact())


def test_a_compiler_for_one_gpu_drops_the_other_architectures(tmp_path):
    real = tmp_path / "real"
    real.write_text("#!/bin/sh\necho $@\n")
    real.chmod(0o755)
    wrapper = tmp_path / "nvcc"
    wrapper.write_text(wheels.NVCC.format(python=sys.executable, nvcc=real, capability="90"))
    wrapper.chmod(0o755)

    def nvcc(*arguments):
        return subprocess.run(
            [wrapper, *arguments], capture_output=True, text=True, check=True
        ).stdout.split()

    ours, other = "arch=compute_90,code=sm_90", "arch=compute_80,code=sm_80"
    assert nvcc("-O3", "-gencode", other, "-gencode", ours, "-c", "a.cu") == [
        "-O3",
        "-gencode",
        ours,
        "-c",
        "a.cu",
    ]
    assert nvcc("-gencode", other, "a.cu") == ["a.cu", "-gencode", ours]
    assert nvcc("--version") == ["--version"]


def test_wheels_are_built_only_from_what_is_there(tmp_path, monkeypatch):
    device = torch.device("cuda")
    (tmp_path / "causal_conv1d-1.0.tar.gz").touch()
    monkeypatch.setattr(wheels.shutil, "which", lambda *_, **__: None)
    with pytest.raises(wheels.BuildError, match="no nvcc"):
        wheels.build_and_install(tmp_path, device)
    monkeypatch.setattr(wheels, "PACKAGES", {"mamba_ssm": "no_such_extension", "torch": "torch"})
    lines = wheels.build_and_install(tmp_path, device)
    assert lines[0].startswith("mamba_ssm: no source distribution")
    assert lines[1] == "torch: already installed"


def run(tmp_path, *arguments):
    """Makes a smoke run and reads its JSON."""
    before = torch.get_num_threads()
    assert command_line.main([*arguments, "--quick", "--threads", "1", "--output", str(tmp_path)]) == 0
    assert torch.get_num_threads() == before
    (path,) = tmp_path.glob(f"{arguments[0]}_*.json")
    content = json.loads(path.read_text())
    assert not content["judged"]
    assert content["provenance"]["threads"] == 1
    return content


def assert_goals_and_readme_have_figures(content):
    wanted = {goal["figure"] for goal in content["goals"]}
    wanted |= {row.figure for row in readme.rows() if row.benchmark == content["benchmark"]}
    assert wanted
    assert not wanted - set(content["figures"])


@pytest.mark.usefixtures("quiet")
def test_scan_smoke_run(tmp_path, monkeypatch):
    # stand-ins, so that every goal has a figure whether or not the peers are installed
    monkeypatch.setattr(scan, "mamba_ssm_reference", lambda: scan._channel_major)
    monkeypatch.setattr(scan, "mambapy_pscan", lambda: scan.token_major_scan)
    monkeypatch.setattr(scan, "torch_associative_scan", lambda: scan.token_major_scan)
    content = run(tmp_path, "scan")
    assert_goals_and_readme_have_figures(content)
    assert content["figures"]["forward + backward memory, ours / mambapy pscan"]["median"] == 1.0


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "name",
    [
        "einfft",
        "model",
        "data",
        "resize",
        "analysis",
        pytest.param(
            "finetune",
            marks=pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft"),
        ),
    ],
)
def test_smoke_run(tmp_path, name):
    assert_goals_and_readme_have_figures(run(tmp_path, name))


@pytest.mark.usefixtures("quiet")
@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells what processes share"
)
def test_cohort_memory_smoke_run(tmp_path, monkeypatch):
    # a run of the command takes long to start; here the memory of this process stands for it
    def embed(slide, output, threads):
        assert Slide(slide).dimensions[0] in (4 * 256, 8 * 256)
        return cohort_memory.Peak(whole_mib=held, main_mib=held, reader_mib=0, seconds=1)

    held = processes.tree_bytes(os.getppid())[os.getpid()] / (1 << 20)
    assert held > 10

    monkeypatch.setattr(cohort_memory, "_embed", embed)
    assert_goals_and_readme_have_figures(run(tmp_path, "cohort_memory"))


@pytest.mark.usefixtures("quiet")
def test_export_smoke_run(tmp_path, monkeypatch):
    # the conversion itself is tested with the models; here a file that holds the weights stands for it
    def export_onnx(model, path):
        torch.save(model, path)

    def session(path, threads):
        assert threads == 1
        model = torch.load(path, weights_only=False)
        return lambda x: 1.0001 * model(x).detach()

    monkeypatch.setattr(export, "ONNX_PACKAGES", ())
    monkeypatch.setattr(export, "_export_onnx", export_onnx)
    monkeypatch.setattr(export, "_session", session)
    monkeypatch.setattr(torch, "compile", lambda model, *, fullgraph, backend: model)
    content = run(tmp_path, "export", "--models", "vit12", "--compile-backend", "aot_eager")
    assert_goals_and_readme_have_figures(content)
    error = content["figures"]["onnxruntime error, relative to the largest feature: vit12"]["median"]
    assert error == pytest.approx(1e-4, rel=0.1)
    (table,) = content["tables"]
    row = dict(zip(table["columns"], table["rows"][0], strict=True))
    assert int(row["nodes"]) > 100
    assert float(row["torch.compile (aot_eager) s"]) >= 0


@pytest.mark.usefixtures("quiet")
def test_export_refuses_a_wrong_compiled_model(monkeypatch, capsys):
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("no_such_package",))
    monkeypatch.setattr(export, "_has_compiler", lambda: True)
    monkeypatch.setattr(export, "_torch_export", lambda model, x: {})
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda x: 1.001 * model(x))
    assert command_line.main(["export", "--quick", "--models", "vit12"]) == 3
    assert "torch.compile of vit12 disagrees" in capsys.readouterr().err


@pytest.mark.usefixtures("quiet")
def test_export_says_what_it_cannot_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("no_such_package",))
    monkeypatch.setattr(export, "_has_compiler", lambda: False)
    monkeypatch.setattr(export, "_torch_export", lambda model, x: {})
    content = run(tmp_path, "export", "--models", "vit12")
    assert any("no_such_package not installed" in note for note in content["notes"])
    assert any("no C++ compiler" in note for note in content["notes"])
    assert not content["figures"]


@pytest.mark.usefixtures("quiet")
def test_gpu_smoke_run_on_a_cpu(tmp_path, monkeypatch):
    implementations = gpu_scans._implementations

    def renamed(bench, operation, notes):
        """Lets the plain implementation stand for the kernels that a GPU would run."""
        plain = implementations(bench, operation, notes)[0]
        names = [f"mamba_ssm Triton kernels, chunk {size}" for size in (64, 256)]
        if operation == "selective_scan":
            names = ["mamba_ssm CUDA kernels"]
        return [dataclasses.replace(plain, name=name) for name in (gpu_scans.TRITON, *names)]

    monkeypatch.setattr(gpu_scans, "_implementations", renamed)
    content = run(tmp_path, "gpu", "--device", "cpu")
    assert_goals_and_readme_have_figures(content)
    assert any("copy bandwidth" in note for note in content["notes"])
    assert all(figure["median"] > 0 for figure in content["figures"].values())


@pytest.mark.usefixtures("quiet")
def test_gpu_smoke_run_refuses_a_wrong_kernel(monkeypatch, capsys):
    def wrong(x, dt, A, B, C, D, bias):
        return gpu_scans.ssd_scan(x, dt, A, B, C, D, dt_bias=bias)  # without softplus

    monkeypatch.setattr(gpu_scans, "_ssd_scan", wrong)
    assert command_line.main(["gpu", "--device", "cpu", "--quick", "--parts", "ssd_scan"]) == 3
    assert "ssd_scan, batch × length" in capsys.readouterr().err


@pytest.mark.usefixtures("quiet")
def test_exit_codes(monkeypatch, tmp_path, capsys):
    output = ["--output", str(tmp_path)]
    monkeypatch.setattr(scan, "run", lambda settings: small_report(figures={"ratio": point(1.0)}))
    assert command_line.main(["scan", *output]) == 1
    assert "missed: ratio" in capsys.readouterr().err
    assert command_line.main(["scan", "--no-fail", *output]) == 0
    monkeypatch.setattr(scan, "run", lambda settings: small_report(figures={}))
    assert command_line.main(["scan", *output]) == 1
    assert "not judged: ratio" in capsys.readouterr().err
    monkeypatch.setattr(scan, "run", lambda settings: small_report())
    assert command_line.main(["scan", *output]) == 0


@pytest.mark.usefixtures("quiet")
def test_kernels_without_triton_name_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(command_line.importlib.util, "find_spec", lambda name: None)
    assert command_line.main(["kernels", "--quick"]) == 1
    assert "pip install triton" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda", "nonsense"])
def test_gpu_without_a_gpu_is_wrong_usage(monkeypatch, device, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command_line.main(["gpu", "--device", device]) == 2
    assert f"--device {device}" in capsys.readouterr().err


def test_readme_shows_the_committed_ratios():
    assert readme.render() in (Path(__file__).parents[2] / "README.md").read_text()


def test_readme_takes_the_newest_judged_result(tmp_path):
    row = readme.rows()[0]
    for day, value, judged in (("01", 5.0, True), ("03", 7.123, True), ("02", 6.0, True), ("04", 9.0, False)):
        figures = {row.figure: Spread(median=value, low=value - 1, high=value + 1)}
        result = small_report(figures=figures, goals=[], judged=judged)
        result.write(tmp_path, a_provenance(date=f"2026-01-{day}T00:00:00+00:00"))
    file = tmp_path / "README.md"
    file.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    readme.update(file, tmp_path)
    text = file.read_text()
    assert f"| {row.label} | 7.12 | 6.12 – 8.12 |" in text
    assert "2 threads, torch 2.6, 2026-01-03" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
