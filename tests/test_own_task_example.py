"""A task of a user's own gets everything that the built-in tasks have."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timm_mvhybrid.cli import main
from timm_mvhybrid.evaluate import read_result

SCRIPT = Path(__file__).parents[1] / "examples" / "own_task.py"


@pytest.fixture
def example(monkeypatch):
    spec = importlib.util.spec_from_file_location("own_task", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_task", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(20):
        pixels = np.full((32, 32, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index:02}.png")
    return tmp_path / "images"


def test_it_is_shorter_than_60_lines():
    assert len(SCRIPT.read_text().splitlines()) < 60


def test_tables_intervals_comparison_page_and_command(example, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [
        str(images),
        "--model",
        "test_vit12,test_mvhybrid",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "out"),
    ]
    assert example.main_of_task(example.Colour(), words) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [score["model"] for score in printed["scores"]] == [
        "test_vit12",
        "test_mvhybrid",
        "baseline:colour",
    ]
    result = read_result(tmp_path / "out")
    assert result.summary("test_vit12", "random", "mae").interval.over == "folds"
    assert result.comparisons[0].baseline == "test_vit12"
    page = (tmp_path / "out" / "index.html").read_text()
    for shown in ("Mean colour of patches: images", 'id="table-intervals"', 'id="table-comparisons"'):
        assert shown in page
    # side by side with another evaluation of the task
    assert example.main_of_task(example.Colour(), [*words[:-1], str(tmp_path / "again"), "--seed", "1"]) == 0
    compared = [
        "report",
        "compare",
        str(tmp_path / "out"),
        str(tmp_path / "again"),
        "--output",
        str(tmp_path / "both"),
    ]
    assert main(compared) == 0
    text = (tmp_path / "both" / "tables.md").read_text()
    assert "| random | Error, grey levels |" in text
    assert "out and again differ in seed" in text
    # what is wrong ends in one sentence, help in none
    assert example.main_of_task(example.Colour(), ["nowhere", "--model", "test_vit12"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: nowhere: ")
    with pytest.raises(SystemExit) as ended:
        example.main_of_task(example.Colour(), ["--help"])
    assert ended.value.code == 0
    assert "Predict the mean colour" in capsys.readouterr().out
