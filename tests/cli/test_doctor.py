"""The doctor on faked installations: what it says of them, and its exit code."""

import importlib.metadata
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from timm_mvhybrid import doctor, models
from timm_mvhybrid.cli import main
from timm_mvhybrid.doctor import examination, installation, trials
from timm_mvhybrid.doctor.trials import Trial
from timm_mvhybrid.ops import implementation

UNDEFINED = "selective_scan_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEi"
WORKING = (Trial(device="cpu", what="selective_scan", works=True, detail="finite"),)
FAILING = (
    *WORKING,
    Trial(device="cuda:0", what="test_vim_einfft", works=False, detail="ImportError: undefined symbol"),
)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Installs packages that consist of the given files, and removes every trace of them."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def install(name, version, files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    yield install
    for module in set(sys.modules) - before:
        if module.split(".")[0] in ("mamba_ssm", "selective_scan_cuda", "causal_conv1d", "hest", "trident"):
            del sys.modules[module]
    implementation._import_failure.cache_clear()


@pytest.fixture
def working(monkeypatch):
    """Spares the computations, where they are not the point."""
    monkeypatch.setattr("timm_mvhybrid.doctor.examination.try_devices", lambda: WORKING)


def versions(monkeypatch, **changed):
    true = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: changed.get(name) or true(name))


def complaints(found):
    return {remedy.complaint: remedy for remedy in found}


def the_remedy(found, text):
    (remedy,) = [remedy for remedy in found if text in remedy.complaint]
    return remedy


def test_this_installation_works(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert f"torch  {torch.__version__.split('+')[0]}" in printed
    assert re.search("selective_scan on cpu, float32: (numba|cpu)", printed)
    assert "Our models work here." in printed
    assert "FAILS" not in printed
    # remedies of what is not there stay away
    assert "undefined symbol" not in printed
    assert "nvcc" not in printed


def test_all_lists_every_complaint(capsys, working):
    assert main(["doctor", "--all"]) == 0
    printed = capsys.readouterr().out
    for remedy in doctor.COMPLAINTS:
        assert remedy.complaint in printed
        assert remedy.remedy in printed
    for topic in ("nvcc", "undefined symbol", "CPU", "Vim", "NaN", "256 px", "export", "384", "mean", "timm"):
        assert any(topic in remedy.complaint + remedy.remedy for remedy in doctor.COMPLAINTS), topic


def test_json(capsys, working):
    assert main(["doctor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["works"] is True
    assert result["implementation"]["scans"][0]["dtype"] == "float32"
    assert {"timm", "mamba-ssm", "lazyslide"} <= {package["name"] for package in result["packages"]}
    assert result["on_cuda"].keys() == {"selective_scan", "ssd_scan", "complex_scan"}
    assert "common_complaints" not in result


def test_undefined_symbol(fake, working, capsys):
    fake(
        "mamba-ssm",
        "2.2.4",
        {"selective_scan_cuda.py": f"raise OSError({UNDEFINED!r})", "mamba_ssm/__init__.py": ""},
    )
    assert main(["doctor"]) == 0
    found = capsys.readouterr().out.partition("Found here:")[2]
    assert (
        f"mamba-ssm 2.2.4 is installed but cannot be imported (selective_scan_cuda: OSError: {UNDEFINED})"
        in found
    )
    assert "pip uninstall mamba-ssm" in found
    assert f"for torch {torch.__version__.split('+')[0]}" in found
    assert "FATAL" not in found


def test_broken_kernels_are_fatal_where_cuda_fails(fake, monkeypatch, capsys):
    monkeypatch.setattr("timm_mvhybrid.doctor.examination.try_devices", lambda: FAILING)
    fake("causal-conv1d", "1.5.0", {"causal_conv1d/__init__.py": f"raise ImportError({UNDEFINED!r})"})
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    lines = printed.partition("Found here:")[2].splitlines()[1:]
    assert lines[0].startswith("- FATAL: causal-conv1d 1.5.0 is installed but cannot be imported")
    assert any(line.startswith("- FATAL: on cuda:0, test_vim_einfft failed: ImportError") for line in lines)
    assert "TIMM_MVHYBRID_IMPLEMENTATION=cpu" in printed
    assert "Our models FAIL here" in printed


def test_vims_fork(fake, working, capsys):
    mixer = "class Mamba:\n    def __init__(self, d_model, bimamba_type='none'):\n        pass\n"
    files = {
        "mamba_ssm/__init__.py": "",
        "mamba_ssm/modules/__init__.py": "",
        "mamba_ssm/modules/mamba_simple.py": mixer,
    }
    fake("mamba-ssm", "1.1.1", files)
    assert main(["doctor"]) == 0
    found = capsys.readouterr().out.partition("Found here:")[2]
    assert "the fork that Vim ships (bimamba)" in found
    assert "keep Vim in an environment of its own" in found


def test_original_mamba_ssm_is_no_fork(fake, working):
    mixer = "class Mamba:\n    def __init__(self, d_model):\n        pass\n"
    fake("mamba-ssm", "2.2.4", {"mamba_ssm/__init__.py": "", "mamba_ssm/modules/mamba_simple.py": mixer})
    assert not installation.is_vims_fork()
    (package,) = [one for one in installation.find_packages() if one.name == "mamba-ssm"]
    assert (package.version, package.note) == ("2.2.4", "")


@pytest.mark.parametrize(("version", "fatal"), [("1.0.20", True), ("0.9.16", True), ("1.0.20", False)])
def test_old_timm(monkeypatch, version, fatal):
    versions(monkeypatch, timm=version)
    tried = FAILING if fatal else WORKING
    found = examination.find_remedies(installation.find_packages(), tried)
    remedy = the_remedy(found, f"timm {version} is older than 1.0.26")
    assert remedy.fatal is fatal
    assert "pip install 'timm>=1.0.26'" in remedy.remedy


def test_oldest_timm_is_old_enough(monkeypatch):
    versions(monkeypatch, timm=examination.OLDEST_TIMM)
    found = complaints(examination.find_remedies(installation.find_packages(), WORKING))
    assert not any("older than" in text for text in found)


def test_oldest_timm_is_the_one_that_is_required():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.findall(r'"timm>=([\d.]+)"', project) == [examination.OLDEST_TIMM]


@pytest.mark.parametrize(
    ("version", "expected"), [("1.0.26", False), ("1.0.31", False), ("1.0.32", True), ("2.0", True)]
)
def test_newer_timm_than_was_tried(monkeypatch, version, expected):
    versions(monkeypatch, timm=version)
    found = complaints(examination.find_remedies(installation.find_packages(), WORKING))
    assert any("newer than 1.0.31" in text for text in found) is expected


@pytest.mark.parametrize("name", ["hest", "trident"])
def test_namesakes_of_pipelines(fake, working, capsys, name):
    fake(name, "1.4.2", {f"{name}/__init__.py": ""})
    assert main(["doctor"]) == 0
    found = capsys.readouterr().out.partition("Found here:")[2]
    assert f"the installed '{name}' is another project of that name" in found
    assert f"pip uninstall {name}; clone github.com/mahmoodlab/{name.upper()}" in found


def test_jsonargparse_that_kaiko_eva_cannot_use(monkeypatch):
    versions(monkeypatch, **{"kaiko-eva": "0.4.5", "jsonargparse": "4.53.0"})
    found = examination.find_remedies(installation.find_packages(), WORKING)
    assert "jsonargparse<4.52" in the_remedy(found, "jsonargparse 4.53.0").remedy
    versions(monkeypatch, **{"kaiko-eva": "0.4.5", "jsonargparse": "4.51.1"})
    assert not any(
        "jsonargparse" in text
        for text in complaints(examination.find_remedies(installation.find_packages(), WORKING))
    )


def test_request_that_cannot_be_met_fails_by_name(monkeypatch, capsys):
    monkeypatch.setattr(implementation, "_requested", "mamba_ssm")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert (
        "- FATAL: implementation 'mamba_ssm' was asked for and cannot run: selective_scan on cpu" in printed
    )
    assert "unset TIMM_MVHYBRID_IMPLEMENTATION" in printed
    assert "- FATAL: on cpu, selective_scan" in printed


def test_a_misspelt_request_is_found_and_the_rest_examined(monkeypatch, capsys):
    monkeypatch.setattr(implementation, "_requested", "cudaa")
    assert main(["doctor"]) == 1
    found = capsys.readouterr().out.partition("Found here:")[2]
    assert (
        "- FATAL: environment variable TIMM_MVHYBRID_IMPLEMENTATION is 'cudaa'; expected one of auto" in found
    )
    assert "unset TIMM_MVHYBRID_IMPLEMENTATION" in found


def test_models_that_give_nan_fail(monkeypatch, capsys):
    forward = models.HybridVisionTransformer.forward
    monkeypatch.setattr(
        models.HybridVisionTransformer,
        "forward",
        lambda self, x: torch.full_like(forward(self, x), torch.nan),
    )
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "cpu  test_mvhybrid  FAILS  gives NaN or Inf" in printed
    assert "cpu  selective_scan  works" in printed


def test_cuda_that_computes_something_else_fails():
    expected = torch.ones(3)
    good, _ = trials._try("scan", lambda device: expected * 1.001, "cuda:0", expected)
    bad, _ = trials._try("scan", lambda device: expected * 1.1, "cuda:0", expected)
    half, _ = trials._try("scan", lambda device: expected.half(), "cuda:0", expected)
    assert [good.works, bad.works, half.works] == [True, False, False]
    assert bad.detail == "differs from the CPU by 1.0e-01"


def test_every_device_is_compared_with_the_cpu(monkeypatch):
    monkeypatch.setattr(trials.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(trials.torch.cuda, "device_count", lambda: 2)
    results = {"cpu": torch.ones(3), "cuda:0": torch.ones(3), "cuda:1": torch.full((3,), 2.0)}
    for name in ("_selective_scan", "_ssd_scan", "_complex_scan"):
        monkeypatch.setattr(trials, name, results.__getitem__)
    monkeypatch.setattr(trials, "_forward", lambda name, autocast=False: results.__getitem__)
    found = {(trial.device, trial.works) for trial in trials.try_devices()}
    assert found == {("cpu", True), ("cuda:0", True), ("cuda:1", False)}


def test_the_trials_draw_nothing_from_the_callers_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trials._try("model", trials._forward("test_vit12"), "cpu", None)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_an_organisation_has(monkeypatch):
    monkeypatch.setattr(models, "PUBLISHED_SETS", ("a-set",))
    assert list(examination._of_weights()) == []
    monkeypatch.setattr(models, "PUBLISHED_SETS", ())
    (none,) = [one for one in examination._of_weights()]
    assert "TIMM_MVHYBRID_ORGANIZATION" in none.remedy
    monkeypatch.setenv("TIMM_MVHYBRID_ORGANIZATION", "lab")
    assert list(examination._of_weights()) == []
