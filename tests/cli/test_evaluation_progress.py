import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from timm_mvhybrid.cli.progress import RunDisplay, RunLog
from timm_mvhybrid.evaluate import (
    BatchReport,
    EmbeddingSummary,
    StageReport,
)
from timm_mvhybrid.runtime.errors import OutputError, ParameterError

REPORT = BatchReport(
    num_done=30, num_total=60, seconds=2.0, data_wait_seconds=0.5, errors=("a[b].png: not a readable image",)
)
SUMMARY = EmbeddingSummary(
    output="out.h5",
    num_patches=59,
    embedding_dim=384,
    input_size_px=(256, 256),
    seconds=4.0,
    patches_per_second=14.75,
    data_wait_share=0.25,
    num_corrupt=1,
)


def show(*, terminal: bool) -> str:
    stream = io.StringIO()
    display = RunDisplay(Console(file=stream, force_terminal=terminal, width=100))
    with display:
        display.update(REPORT)
    display.summarise(SUMMARY)
    return stream.getvalue()


def test_a_terminal_sees_progress_and_summary():
    shown = show(terminal=True)
    assert "30/60" in shown
    assert "15.0 patches/s" in shown
    assert "59 patches × 384 → out.h5, 1 unreadable patch left out" in re.sub(r"\x1b\[[0-9;]*m", "", shown)


@pytest.mark.parametrize(("edge", "what"), [("black", "black beyond it"), ("skip", "left out")])
def test_a_terminal_sees_how_many_patches_hang_over_the_edge(edge, what):
    stream = io.StringIO()
    summary = dataclasses.replace(SUMMARY, num_corrupt=0, num_over_edge=5, edge=edge)
    RunDisplay(Console(file=stream, force_terminal=True, width=100)).summarise(summary)
    assert f"out.h5, 5 over the slide's edge ({what})\n" in stream.getvalue()


def test_a_terminal_sees_which_source_is_embedded_and_then_what_is_scored():
    stream = io.StringIO()
    with RunDisplay(Console(file=stream, force_terminal=True, width=100)) as display:
        display.update(REPORT, "slide_7")
        assert display._bar.tasks[0].description == "embedding slide_7"
        display.advance(StageReport(stage="loso", model="mvhybrid", num_done=3, num_total=8))
        assert display._bar.tasks[0].completed == 3
    assert "scoring loso" in stream.getvalue()
    assert "3/8 mvhybrid" in re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


def test_a_pipe_sees_what_was_left_out_and_nothing_else():
    assert show(terminal=False) == "warning: skipped a[b].png: not a readable image\n"


def test_log_appends_every_so_many_batches_and_every_loss(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", every_num_batches=3)
    clean = BatchReport(num_done=1, num_total=60, seconds=0.1, data_wait_seconds=0.0, errors=())
    for report in (clean, REPORT, clean, clean):
        log.update(report)
    RunLog(tmp_path / "log.jsonl").write("done", path=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["progress", "progress", "done"]
    assert lines[0]["errors"] == ["a[b].png: not a readable image"]
    assert lines[1]["num_done"] == 1
    assert all(line["time"] > 1e9 for line in lines)


def test_no_log_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunLog(None).write("start")
    assert list(tmp_path.iterdir()) == []


def test_log_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match=r"missing.log\.jsonl: cannot be written \(No such file"):
        RunLog(tmp_path / "missing" / "log.jsonl")
    with pytest.raises(ParameterError, match="at least 1"):
        RunLog(tmp_path / "log.jsonl", every_num_batches=0)
