"""The examples run."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from support import chromium
from support.forked import run_module

from timm_mvhybrid.evaluate import read_result
from timm_mvhybrid.evaluate.expression.tables import find_drops

ROOT = Path(__file__).parents[1]


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
    options = "--models test_mvhybrid test_vit12 --studies 3 --spots 12 --num-components 8".split()
    code, shown, errors = run_module(ROOT / "examples" / "loso_phantom.py", ["--output", folder, *options])
    assert code == 0, errors
    return folder / "report", " ".join(shown.split())


def test_loso_phantom(phantom):
    report, shown = phantom
    assert "generated and the weights are random" in shown
    found = read_result(report)
    assert found.provenance.generated
    assert {(scores.model, scores.protocol) for scores in found.scores} == {
        (name, protocol) for name in ("test_mvhybrid", "test_vit12") for protocol in ("random", "loso")
    }
    for drop in find_drops(found):
        if drop.metric == "pcc" and drop.percent is not None:
            assert f"{drop.model}: PCC {drop.random:.3f} → {drop.loso:.3f}" in shown
    assert "Generated data" in (report / "index.html").read_text()


@pytest.mark.skipif(chromium.BROWSER is None, reason=chromium.MISSING)
def test_the_page_of_loso_phantom_is_drawn_in_a_browser(phantom, tmp_path):
    figures, console = chromium.probe(phantom[0] / "index.html", tmp_path / "profile", chromium.MEASURE)
    assert console == []
    expected = {"slope", "groups-random", "groups-loso", "genes-random", "genes-loso", "maps"}
    chromium.assert_drawn(figures, expected)
