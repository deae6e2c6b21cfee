import json
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch
from support.limited_disks import at_every_byte

from timm_mvhybrid.export.run_records import read_run_records
from timm_mvhybrid.runtime.errors import OutputError, PretrainError
from timm_mvhybrid.training.metrics_log import MetricsLog, read_lines
from timm_mvhybrid.training.run_directory import RunDirectory


def reject(name):
    raise AssertionError(f"{name} is no JSON")


def strict_lines(path):
    return [json.loads(line, parse_constant=reject) for line in path.read_text().splitlines()]


def write_steps(run, *steps):
    with MetricsLog(run) as log:
        for step in steps:
            log.write(step, loss=float(step))


def test_values_of_all_kinds_become_one_flat_line(tmp_path):
    run = RunDirectory(tmp_path)
    with MetricsLog(run) as log:
        log.write(
            3,
            loss={"total": torch.tensor(1.5, dtype=torch.bfloat16), "dino": np.float32(0.25)},
            count=np.int64(7),
            norm=torch.tensor([2.0], requires_grad=True),
            note="collapse",
            done=True,
            nothing=None,
        )
    (line,) = strict_lines(run.metrics)
    assert line.pop("time") > 1e9
    expected = {"loss/total": 1.5, "loss/dino": 0.25, "count": 7, "norm": 2.0}
    assert line == {"step": 3, **expected, "note": "collapse", "done": True, "nothing": None}


def test_what_is_not_finite_survives_strict_json(tmp_path):
    run = RunDirectory(tmp_path)
    with MetricsLog(run) as log:
        log.write(1, a=math.nan, b=torch.tensor(math.inf), c=-math.inf)
    (line,) = strict_lines(run.metrics)
    assert (line["a"], line["b"], line["c"]) == ("NaN", "Infinity", "-Infinity")
    (line,) = read_lines(run.metrics)
    assert math.isnan(line["a"])
    assert (line["b"], line["c"]) == (math.inf, -math.inf)
    assert read_run_records(tmp_path).last_metrics["a"] == "NaN"


@pytest.mark.parametrize("value", [torch.ones(2), [1.0], object(), np.ones(3)])
def test_what_is_no_number_is_refused_by_name(tmp_path, value):
    run = RunDirectory(tmp_path)
    with MetricsLog(run) as log, pytest.raises(PretrainError, match="metric loss/ibot must be"):
        log.write(1, loss={"ibot": value})
    assert run.metrics.read_text() == ""


def test_lines_are_in_the_file_when_write_returns(tmp_path):
    run = RunDirectory(tmp_path)
    with MetricsLog(run) as log:
        log.write(1, loss=2.0)
        assert [line["loss"] for line in strict_lines(run.metrics)] == [2.0]


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    run = RunDirectory(tmp_path)
    write_steps(run, 1, 2, 2, 3, 4)
    with MetricsLog(run, resume_step=2) as log:
        log.write(3, loss=30.0)
    assert [(line["step"], line["loss"]) for line in strict_lines(run.metrics)] == [
        (1, 1.0),
        (2, 2.0),
        (2, 2.0),
        (3, 30.0),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_resuming_mends_a_last_line_cut_short_within_a_letter(tmp_path):
    run = RunDirectory(tmp_path)
    write_steps(run, 1, 2)
    with run.metrics.open("ab") as stream:
        stream.write('{"step": 3, "note": "ä'.encode()[:-1])
    assert [line["step"] for line in read_lines(run.metrics)] == [1, 2]
    with MetricsLog(run, resume_step=5) as log:
        log.write(6, loss=6.0)
    assert [line["step"] for line in strict_lines(run.metrics)] == [1, 2, 6]


def test_a_complete_line_without_its_line_break_is_not_trusted(tmp_path):
    run = RunDirectory(tmp_path)
    run.metrics.write_text('{"step": 1, "loss": 1.0}\n{"step": 12')
    assert [line["step"] for line in read_lines(run.metrics)] == [1]
    run.metrics.write_text('{"step": 1, "loss": 1.0}\n{"step": 2}')
    with MetricsLog(run, resume_step=9) as log:
        log.write(3, loss=3.0)
    assert [line["step"] for line in strict_lines(run.metrics)] == [1, 3]


def test_a_new_log_does_not_mix_with_an_old_one(tmp_path):
    run = RunDirectory(tmp_path)
    write_steps(run, 1, 2)
    with pytest.raises(PretrainError, match=r"metrics\.jsonl: holds 2 lines of an earlier run; resume it"):
        MetricsLog(run)
    assert len(read_lines(run.metrics)) == 2


@pytest.mark.parametrize("damage", ["{broken", '{"loss": 1}', "3", '{"step": "x"}'])
def test_damage_in_the_middle_is_named(tmp_path, damage):
    run = RunDirectory(tmp_path)
    run.metrics.write_text('{"step": 1}\n' + damage + '\n{"step": 2}\n')
    with pytest.raises(PretrainError, match=r"metrics\.jsonl: line 2 is damaged"):
        MetricsLog(run, resume_step=2)
    assert run.metrics.read_text().count("\n") == 3


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"missing.metrics\.jsonl: cannot be written"):
        MetricsLog(RunDirectory(tmp_path / "missing"))


def test_tensorboard_holds_the_numbers_and_forgets_what_a_resumed_run_repeats(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDirectory(tmp_path)
    with MetricsLog(run, tensorboard=True) as log:
        for step in (1, 2, 3):
            log.write(step, loss={"total": step * 1.0}, note="text", flag=True)
    with MetricsLog(run, tensorboard=True, resume_step=2) as log:
        log.write(3, loss={"total": 30.0})
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss/total"]
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [(1, 1), (2, 2), (3, 30)]


def test_a_missing_tensorboard_is_named_and_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(PretrainError, match="pip install tensorboard"):
        MetricsLog(RunDirectory(tmp_path), tensorboard=True)
    assert list(tmp_path.iterdir()) == []


def write_tensorboard(folder):
    with MetricsLog(RunDirectory(folder), tensorboard=True, resume_step=0) as log:
        log.write(1, loss=1.0)


def check_tensorboard(size, folder):
    with pytest.raises(OutputError, match=r"tensorboard: cannot be written \(File too large"):
        write_tensorboard(folder)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_tensorboard_on_a_full_disk_is_one_sentence_and_its_thread_says_nothing(tmp_path, capfd):
    pytest.importorskip("tensorboard")
    # at the start, and when the log is closed
    at_every_byte(partial(check_tensorboard, folder=tmp_path), [10, 100])
    assert "Traceback" not in capfd.readouterr().err
