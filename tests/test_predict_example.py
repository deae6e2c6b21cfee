"""The example on sections runs, says who was left out, and writes maps that a browser draws."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import chromium
from support.coloured_sections import GENES, write_sections

from timm_mvhybrid.predict import ExpressionPredictor

EXAMPLE = Path(__file__).parents[1] / "examples" / "predict_her2st.py"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Runs the example; gives its folder and what it printed."""
    folder = tmp_path_factory.mktemp("example")
    data = write_sections(folder / "sections", ("A1", "A2", "A3", "B1"))
    command = [sys.executable, EXAMPLE, data, "--output", folder / "out", "--size", "64", "--genes", "12"]
    command += ["--sections", "B1", "A1", "--model", "test_vit12"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder / "out", result.stdout


@pytest.mark.slow
def test_it_says_who_was_in_the_fit_and_shows_every_gene(ran):
    folder, shown = ran
    other, same = shown.strip().split("\n\n")
    assert "B1, predicted from 3 other sections, no section of its patient among them" in other
    assert "A1, predicted from 3 other sections, with A2, A3 of the same patient, which flatters" in same
    for part in (other, same):
        rows = re.findall(r"^(G\d\d) +(-?[\d.]+) +(-?[\d.]+) +(-?[\d.]+)$", part, re.MULTILINE)
        assert len({gene for gene, *_ in rows}) == 10
        r = [float(row[1]) for row in rows]
        assert r == sorted(r, reverse=True)
        # the genes follow the colours
        (mean,) = re.findall(r"^mean of 12 +\S+ +\S+ +(\S+)$", part, re.MULTILINE)
        assert float(mean) > 0.3
        assert "intervals of 80% hold" in part
    assert set(ExpressionPredictor.load(folder / "predictor_without_B1").genes_) == set(GENES)
    with Image.open(folder / "B1.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 500


@pytest.mark.skipif(chromium.BROWSER is None, reason=chromium.MISSING)
def test_the_page_is_drawn_in_a_browser(ran, tmp_path):
    script = """
    const view = (name) => document.querySelector(`[name="map-view"][value="${name}"]`).click();
    const key = () => document.getElementById("map-key").innerText;
    const colours = () => document.getElementById("map-colours").toDataURL();
    const result = { predicted: key(), label: document.getElementById("map-lines").getAttribute("aria-label") };
    const before = colours(); view("measured"); result.measured = key(); result.changed = colours() !== before;
    """
    found, console = chromium.probe(ran[0] / "B1.html", tmp_path / "profile", script)
    assert console == []
    assert "on 30 patches" in found["label"]
    assert found["changed"]
    assert found["measured"] != found["predicted"]
