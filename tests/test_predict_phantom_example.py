"""The example of intervals on a phantom runs, and says what its predictors say."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timm_mvhybrid.predict import ExpressionPredictor

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_predict_phantom(tmp_path):
    command = [sys.executable, ROOT / "examples" / "predict_phantom.py", "--output", tmp_path]
    command += [
        "--model",
        "test_mvhybrid",
        "--studies",
        "3",
        "--new-studies",
        "2",
        "--spots",
        "9",
        "--genes",
        "20",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    shown = " ".join(result.stdout.split())
    assert "generated and the weights are random" in shown
    for name in ("nested", "recipe"):
        predictor = ExpressionPredictor.load(tmp_path / f"predictor_{name}")
        assert len(predictor.genes_) == 20
        assert predictor.studies_ == ("GEN01", "GEN02", "GEN03")
        assert predictor.provenance_.generated
        assert (
            f"({predictor.alpha_:g}): r = {np.nanmean(predictor.reliability_.r):.2f} in left-out studies"
            in shown
        )
    rows = re.findall(r"│ (\w+) +│ (plain|shifted stain) +│ +([\d.]+)% +│", result.stdout)
    assert len(rows) == 4
    assert all(0 <= float(covered) <= 100 for _, _, covered in rows)
    picture = np.asarray(Image.open(tmp_path / "coverage.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50  # points and letters, not a blank canvas
    page = tmp_path / "maps" / "GEN04-01.html"
    assert f"page: {page} (" in result.stdout
    assert "Generated data, drawn by a program and not measured" in page.read_text()
