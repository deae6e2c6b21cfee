import importlib.util
import json
import math
import sys

import numpy as np
import pytest
from PIL import Image

from timm_mvhybrid.cli import main
from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.training.metrics_log import MetricsLog
from timm_mvhybrid.training.plot import PANELS, _arrange, plot_runs, read_curves, run_labels, smooth
from timm_mvhybrid.training.run_directory import RunDirectory

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="drawing needs matplotlib"
)
METRICS = {
    "loss": {"total": 9.0, "ibot": 3.0},
    "grad_norm": {"backbone": 2.0},
    "learning_rate": 1e-3,
    "weight_decay": 0.04,
    "teacher_momentum": 0.99,
    "teacher_temperature": 0.05,
    "teacher_entropy": 0.5,
    "rankme": 30.0,
    "feature_std": 0.8,
    "images_per_second": 100.0,
    "share_other": 0.05,
    "share_data": 0.2,
    "share_compute": 0.75,
    "knn_accuracy": 0.5,
}


def write_run(path, num_steps=40, bad_steps=()):
    path.mkdir(parents=True)
    run = RunDirectory(path)
    with MetricsLog(run) as log:
        for step in range(1, num_steps + 1):
            loss = math.nan if step in bad_steps else 9.0 - step / 10
            log.write(step, **{**METRICS, "loss": {"ibot": 3.0, "total": loss}, "note": "text"})
    return run


def test_curves_are_the_numbers_of_the_log(tmp_path):
    run = write_run(tmp_path / "run", num_steps=5, bad_steps=(3,))
    curves = {curve.name: curve for curve in read_curves(run, "run")}
    assert "note" not in curves
    assert "time" not in curves
    total = curves["loss/total"]
    assert total.steps.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(total.values, [8.9, 8.8, np.nan, 8.6, 8.5])
    assert total.breaks.tolist() == [3]
    assert curves["loss/ibot"].breaks.tolist() == []


def test_every_metric_of_a_run_has_the_panel_meant_for_it(tmp_path):
    panels = _arrange(read_curves(write_run(tmp_path / "run"), "run"))
    members = {panel.title: [curve.name for curve in curves] for panel, curves in panels}
    assert members["Loss"] == ["loss/total", "loss/ibot"]
    assert members["Gradient norm"] == ["grad_norm/backbone"]
    assert members["Fraction of time"] == ["share_data", "share_compute", "share_other"]
    assert members["Online probe"] == ["knn_accuracy"]
    assert set(members) <= {panel.title for panel in PANELS}
    assert sum(map(len, members.values())) == 15


def test_panels_without_news_are_left_out(tmp_path):
    quiet, loud = RunDirectory(tmp_path / "quiet"), RunDirectory(tmp_path / "loud")
    for run, corrupt in ((quiet, 0), (loud, 1)):
        run.path.mkdir()
        with MetricsLog(run) as log:
            log.write(1, rankme=3.0, loss_scale=1.0, num_corrupt=0)
            log.write(2, rankme=3.0, loss_scale=1.0 + corrupt, num_corrupt=corrupt)
    titles = [[panel.title for panel, _ in _arrange(read_curves(run, "a"))] for run in (quiet, loud)]
    assert titles == [
        ["Effective rank (RankMe)"],
        ["Effective rank (RankMe)", "Loss scale", "Unreadable patches"],
    ]


def test_unknown_metrics_are_drawn_by_their_groups(tmp_path):
    run = RunDirectory(tmp_path)
    with MetricsLog(run) as log:
        log.write(1, stain={"h": 1.0, "e": 2.0}, other=3.0)
    members = {
        panel.title: [curve.name for curve in curves] for panel, curves in _arrange(read_curves(run, "a"))
    }
    assert members == {"stain": ["stain/h", "stain/e"], "other": ["other"]}


def test_smoothing_averages_neighbours_and_leaves_gaps():
    values = np.array([0.0, 3.0, 6.0, np.nan, 2.0])
    np.testing.assert_allclose(smooth(values, 3), [1.5, 3.0, 4.5, np.nan, 2.0])
    np.testing.assert_allclose(smooth(values, 1), values)


def test_runs_of_one_name_are_told_apart(tmp_path):
    assert run_labels([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert run_labels([tmp_path / "run"]) == ["run"]


def coloured_pixels(path, colour):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return int((np.abs(pixels - np.array(colour)).max(axis=2) < 12).sum())


@needs_matplotlib
def test_a_run_is_drawn_with_its_failures(tmp_path):
    good = plot_runs([write_run(tmp_path / "good").path])
    assert good == tmp_path / "good" / "plots" / "curves.png"
    bad = plot_runs([write_run(tmp_path / "bad", bad_steps=(20,)).path])
    worse = plot_runs([write_run(tmp_path / "worse", bad_steps=(10, 20, 30)).path])
    alarm = (0xC0, 0, 0)
    assert coloured_pixels(good, alarm) == 0
    # one mark in the legend, and one at each step
    assert coloured_pixels(bad, alarm) > 20
    assert coloured_pixels(worse, alarm) > 1.8 * coloured_pixels(bad, alarm)
    assert coloured_pixels(good, (0x1F, 0x5F, 0xA8)) > 1000
    assert sorted(path.name for path in good.parent.iterdir()) == ["curves.png"]


@needs_matplotlib
def test_several_runs_have_a_colour_each(tmp_path):
    runs = [write_run(tmp_path / "a").path, write_run(tmp_path / "b", num_steps=80).path]
    picture = plot_runs(runs, tmp_path / "both.png", smoothing=0.2)
    for colour in ((0x1F, 0x5F, 0xA8), (0xD1, 0x57, 0x2C)):
        assert coloured_pixels(picture, colour) > 300


@needs_matplotlib
def test_the_command_draws_and_says_where(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", num_steps=1)
    assert main(["plot", "run", "--smoothing", "0.1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": "run/plots/curves.png"}
    with Image.open("run/plots/curves.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], r"missing/metrics.jsonl: no such log; give the folder of a run"),
        (["empty"], r"empty/metrics.jsonl: holds no numbers yet"),
        (["run", "other"], "FILE.png"),
        (["run", "--output", "curves.pdf"], "curves.pdf: the picture is a PNG"),
        (["run", "--smoothing", "2"], "is 2.0; it must be between 0 and 1"),
    ],
)
def test_problems_are_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "other"):
        write_run(tmp_path / name, num_steps=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    assert main(["plot", *arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_missing_matplotlib_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = write_run(tmp_path / "run", num_steps=1)
    with pytest.raises(PretrainError, match=r"pip install 'timm-mvhybrid\[pretrain\]'"):
        plot_runs([run.path])
    assert not list(run.plots.iterdir())
