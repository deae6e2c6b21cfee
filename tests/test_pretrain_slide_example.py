"""The pretraining example runs on the real slide, and its measure measures what it says."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
from PIL import Image

import timm_mvhybrid  # noqa: F401 -- registers the models with timm

EXAMPLES = Path(__file__).parents[1] / "examples"

needs_pretrain = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("lightly", "matplotlib")),
    reason="the example needs the extra 'pretrain'",
)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    specification = importlib.util.spec_from_file_location("pretrain_slide", EXAMPLES / "pretrain_slide.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@needs_pretrain
@pytest.mark.slow
def test_a_slide_becomes_a_model_and_figures(tmp_path):
    output = tmp_path / "results"
    command = [sys.executable, EXAMPLES / "pretrain_slide.py", "--output", output, "--steps", "3"]
    result = subprocess.run([*command, "--batch-size", "4"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    figures = json.loads((output / "figures.json").read_text())
    assert figures["steps"] == 3
    assert math.isfinite(figures["loss_last_tenth"])
    for precision in figures["neighbour_precision"].values():
        values = [precision["chance"], precision["pretrained"], *precision["random"]]
        assert all(0 < value < 1 for value in values)
        assert len(set(precision["random"])) == 5
        expected = precision["pretrained"] - np.mean(precision["random"])
        assert precision["difference"] == pytest.approx(expected)
        assert 0 < precision["standard_error"] < 0.1
    assert set(figures["neighbour_precision"]) == {"as_scanned", "changed_colours"}
    with (
        h5py.File(output / "patches" / "training" / "half.h5") as training,
        h5py.File(output / "patches" / "held_out" / "half.h5") as held_out,
        h5py.File(output / "pretrained.h5") as embedded,
    ):
        # what is measured was not trained on
        assert training["coords"][:, 1].max() + 128 <= held_out["coords"][:, 1].min()
        assert len(training["img"]) == figures["num_training_patches"] > 100
        assert len(embedded["embeddings"]) == len(held_out["img"]) == figures["num_held_out_tiles"]
        tile, expected = held_out["img"][0], embedded["embeddings"][0]
    model = timm.create_model(f"local-dir:{output / 'exported'}", pretrained=True, num_classes=0).eval()
    config = timm.data.resolve_data_config({}, model=model)
    mean, deviation = (np.array(config[name], dtype=np.float32) for name in ("mean", "std"))
    image = torch.from_numpy((tile.astype(np.float32) / 255 - mean) / deviation).permute(2, 0, 1)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(image)[0], torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    for name in ("components.png", "curves.png"):
        with Image.open(output / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_the_measure_is_1_for_a_map_and_chance_for_noise(example):
    rows, columns = np.mgrid[0:12, 0:12]
    coords = np.stack([columns.ravel(), rows.ravel()], axis=1) * 100
    # directions on a large sphere, so that the angle between two tiles grows with their distance on the slide
    plane = np.concatenate([coords, np.full((144, 1), 5000)], axis=1).astype(float)
    precision, chance = example.neighbour_precision(plane, coords, side=100)
    assert precision.mean() > 0.85
    assert chance == pytest.approx((4 * 3 + 40 * 5 + 100 * 8) / 144 / 143)
    noise = np.random.default_rng(0).normal(size=(144, 32))
    assert example.neighbour_precision(noise, coords, side=100)[0].mean() == pytest.approx(chance, abs=0.03)
