"""The examples run, and the README tells the truth about names and commands."""

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support import chromium

import timm_mvhybrid
from timm_mvhybrid.evaluate import read_result

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_quickstart(tmp_path):
    models = ["test_mvhybrid", "test_vit12"]
    command = [sys.executable, ROOT / "examples" / "quickstart.py", "--output", tmp_path, "--models", *models]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "weights are random" in " ".join(result.stdout.split())
    for name in models:
        assert name in result.stdout
        with h5py.File(tmp_path / f"{name}.h5") as file:
            assert file["embeddings"].shape == (33, 64)
            assert file.attrs["weights_sha256"] == "random"
    picture = np.asarray(Image.open(tmp_path / "components.png"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50  # tissue and components, not a blank canvas


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Runs the example; gives its report's folder and what it printed."""
    folder = tmp_path_factory.mktemp("phantom")
    command = [sys.executable, ROOT / "examples" / "loso_phantom.py", "--output", folder]
    command += ["--models", "test_mvhybrid", "test_vit12", "--studies", "3", "--spots", "12"]
    command += ["--num-components", "8"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return folder / "report", " ".join(result.stdout.split())


def test_loso_phantom(phantom):
    report, shown = phantom
    assert "generated and the weights are random" in shown
    found = read_result(report)
    assert found.provenance.generated
    assert {(scores.model, scores.protocol) for scores in found.scores} == {
        (name, protocol) for name in ("test_mvhybrid", "test_vit12") for protocol in ("random", "loso")
    }
    for drop in found.drops:
        if drop.metric == "pcc" and drop.percent is not None:
            assert f"{drop.model}: PCC {drop.random:.3f} → {drop.loso:.3f}" in shown
    assert "Generated data" in (report / "index.html").read_text()


@pytest.mark.skipif(chromium.BROWSER is None, reason=chromium.MISSING)
def test_the_page_of_loso_phantom_is_drawn_in_a_browser(phantom, tmp_path):
    figures, console = chromium.probe(phantom[0] / "index.html", tmp_path / "profile", chromium.MEASURE)
    assert console == []
    chromium.assert_drawn(figures, {"slope", "genes-random", "genes-loso", "maps"})


def test_readme_snippet():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    namespace = {"images": torch.randn(1, 3, 256, 256)}
    with torch.no_grad():
        exec(code, namespace)
    assert namespace["features"].shape == (1, 384)


@pytest.mark.parametrize("name", timm_mvhybrid.models.MODEL_NAMES)
def test_readme_table_of_models(name):
    model = timm.create_model(name, device="meta")
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"| `{name}` | {model.layout()} | {millions:.1f} M |" in README


def readme_commands():
    """Every command of the README, with its subcommand if it has any, and the flags that follow it there."""
    flags = {}
    for line in re.findall(r"^timm-mvhybrid (.+)$", README, re.MULTILINE):
        command, *words = line.split("#")[0].split()
        nested = words[0].split("|") if command in ("evaluate", "report") else [""]
        for subcommand in nested:
            found = flags.setdefault(f"{command} {subcommand}".strip(), set())
            found |= {word for word in words if re.fullmatch(r"--[a-z][a-z.-]+", word)}
    return flags


@pytest.mark.parametrize("command", sorted(readme_commands()))
def test_readme_commands_exist(command):
    result = subprocess.run(
        [sys.executable, "-m", "timm_mvhybrid", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for flag in readme_commands()[command]:
        assert flag in result.stdout


def test_readme_files_exist():
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / link).exists(), link
