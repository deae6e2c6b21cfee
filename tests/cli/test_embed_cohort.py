"""``timm-mvhybrid embed ... --output DIR``: what it prints, its exit codes, and processes that are killed, stopped and several."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import h5py
import pytest
from support.forked import run_module
from support.generated_slides import write_slide
from support.slide_folders import file_digests, write_slides

from timm_mvhybrid.cli import main
from timm_mvhybrid.cohorts.bags import read_bags, read_slides
from timm_mvhybrid.embed.slide_cohort import read_records

OPTIONS = "--model test_vit12 --patch-size 64 --batch-size 5 --device cpu".split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_slides(tmp_path / "in")
    return tmp_path


# one tile a batch, so that there is time to kill a run in the middle; features depend in their last bits on how many are
# multiplied at a time, so that what goes on with such a run, and what it is compared with, do the same
ONE_BY_ONE = ("--batch-size", "1")


def embed(*arguments, output="out", more=()):
    return main(["embed", *arguments, "--output", output, *OPTIONS, *more])


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The files of one process that nothing disturbs."""
    place = tmp_path_factory.mktemp("expected")
    assert embed(str(write_slides(place / "in")), "--num-workers", "0", output=str(place / "out")) == 0
    return file_digests(place / "out")


@pytest.fixture(scope="module")
def expected_one_by_one(tmp_path_factory):
    """The same in batches of one."""
    place = tmp_path_factory.mktemp("one_by_one")
    inputs, output = str(write_slides(place / "in")), str(place / "out")
    assert embed(inputs, "--num-workers", "0", output=output, more=ONE_BY_ONE) == 0
    return file_digests(place / "out")


def test_a_folder_of_slides_becomes_a_folder_of_files(folder, expected, capsys):
    capsys.readouterr()
    assert embed("in/*.tif", "--num-workers", "2") == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "warning: the weights are random, so the features carry no meaning; give --checkpoint FILE or --pretrained"
    ]
    summary = json.loads(printed.out)
    assert summary | {"seconds": 0, "data_wait_share": 0} == {
        "output": "out",
        "num_slides": 4,
        "num_embedded": 4,
        "num_kept": 0,
        "num_left": 0,
        "num_empty": 0,
        "num_failed": 0,
        "num_patches": 78,
        "seconds": 0,
        "data_wait_share": 0,
        "stopped": False,
    }
    assert file_digests(folder / "out") == expected
    assert embed("in") == 0
    assert json.loads(capsys.readouterr().out)["num_kept"] == 4


def test_failures_are_listed_with_what_to_do_and_have_a_code_of_their_own(folder, capsys):
    write_slide(folder / "in" / "unscaled.tif", um_per_px=None)
    write_slide(folder / "in" / "blank.tif", tissue=None)
    assert embed("in", "--num-workers", "0", "--log", "log.jsonl", "--log-every", "1") == 3
    printed = capsys.readouterr()
    _, empty, failed = printed.err.splitlines()
    assert empty.startswith("empty: blank: in/blank.tif: no tissue found")
    assert failed == (
        "failed: unscaled: in/unscaled.tif: the slide states no usable resolution; give it with --slide-resolution, "
        "or for this slide alone in the column 'um_per_px' of a CSV"
    )
    numbers = json.loads(printed.out)
    assert (numbers["num_embedded"], numbers["num_empty"], numbers["num_failed"]) == (4, 1, 1)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("slide") == 6
    assert {event["event"] for event in events} == {"start", "progress", "slide", "done"}
    assert embed("in/unscaled.tif", "--slide-resolution", "0.5") == 0


def test_ids_that_collide_are_refused_before_anything_is_done(folder, capsys):
    write_slide(folder / "in" / "a.tiff")
    assert embed("in") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(
        "error: in/a.tif (in) and in/a.tiff (in) would both become a.h5; give one of them another name"
    )
    assert not (folder / "out").exists()


def test_too_many_failures_end_it(folder, capsys):
    for name in "xyz":
        write_slide(folder / "in" / f"{name}.tif", um_per_px=None)
    assert embed("in", "--num-workers", "0", "--max-failed", "0") == 1
    assert re.search(r"error: 1 of \d slides failed, and --max-failed 0 is the most", capsys.readouterr().err)


def test_a_task_of_an_array_begins_with_its_part_and_does_what_others_leave(folder, expected, capsys):
    assert embed("in", "--num-workers", "0", "--part", "1/2", "--log", "log.jsonl") == 0
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [event["slide_id"] for event in events if event["event"] == "slide"] == ["b", "c", "d", "a"]
    assert file_digests(folder / "out") == expected
    capsys.readouterr()
    assert embed("in", "--part", "2/2") == 1
    assert "--part is 2/2; it must be from 0/N to N-1/N, such as 3/16" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        embed("in", "--part", "second")
    assert wrong.value.code == 2


def test_one_file_takes_one_input(folder, capsys):
    assert embed("in/a.tif", "in/b.tif", output="out.h5") == 2
    assert (
        "out.h5 is one file, and takes one INPUT, not 2; give a folder as --output" in capsys.readouterr().err
    )
    assert embed("in/a.tif", "--num-workers", "0", output="out.h5") == 0
    assert h5py.is_hdf5("out.h5")


def test_tasks_on_slides_read_the_folder(folder):
    assert embed("in", "--num-workers", "0") == 0
    (folder / "slides.csv").write_text("slide_id,patient\nd,one\na,two\n")
    table = read_slides(folder / "slides.csv", ())
    bags, model = read_bags(folder / "out", table.slides)
    assert [bag.shape for bag in bags] == [(6, 64), (32, 64)]
    assert (model.label, model.name, model.num_patches) == ("out", "test_vit12", 38)


@pytest.mark.distributed
def test_processes_of_torchrun_share_the_slides(folder, expected):
    arguments = ["embed", "in", "--output", "out", *OPTIONS, "--num-workers", "1"]
    code, out, err = run_module("timm_mvhybrid", arguments, ranks=2, folder=folder)
    assert code == 0, err
    assert json.loads(out)["num_embedded"] == 4
    assert file_digests(folder / "out") == expected
    assert {record.attempts for record in read_records(folder / "out").values()} == {1}


def start(folder, *arguments):
    # a shell lets its background jobs ignore the signal, and the suite may be one
    text = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('timm_mvhybrid', run_name='__main__', alter_sys=True)"
    )
    program = [sys.executable, "-c", text, "embed", "in", "--output", "out", *OPTIONS]
    return subprocess.Popen(
        [*program, "--num-workers", "2", "--log", "log.jsonl", "--log-every", "1", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(process, log, event, times=1):
    deadline = time.monotonic() + 200
    while not (log.exists() and log.read_text().count(f'"event": "{event}"') >= times):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_killed_run_is_finished_by_the_next(folder, expected_one_by_one, capsys):
    with start(folder, *ONE_BY_ONE) as process:
        try:
            wait_for(process, folder / "log.jsonl", "slide")
            os.kill(process.pid, signal.SIGKILL)
            # readers end by themselves, and with them the pipes that they inherited
            process.communicate(timeout=200)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    done = {name for name, record in read_records(folder / "out").items() if record.state == "done"}
    assert set(file_digests(folder / "out")) >= done
    assert embed("in", "--num-workers", "0", more=ONE_BY_ONE) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["num_kept"] == len(done)
    assert summary["num_embedded"] == 4 - len(done)
    assert file_digests(folder / "out") == expected_one_by_one
    assert sorted(os.listdir(folder / "out")) == ["a.h5", "b.h5", "c.h5", "cohort.jsonl", "d.h5"]


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        ("SIGTERM", 75, "stopped by a signal; slides that were finished are kept, run it again to go on"),
        ("SIGINT", 130, "interrupted; slides that were finished are kept; run it again to go on"),
    ],
)
def test_a_signal_leaves_whole_files_and_the_next_run_goes_on(
    folder, expected_one_by_one, number, code, said
):
    for index in range(60):
        os.link(folder / "in" / "a.tif", folder / "in" / f"z{index:02d}.tif")
    with start(folder, *ONE_BY_ONE) as process:
        try:
            wait_for(process, folder / "log.jsonl", "slide")
            # a scheduler and a terminal signal every process of the job
            os.killpg(process.pid, getattr(signal, number))
            _, err = process.communicate(timeout=200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == said
    files = [name for name in os.listdir(folder / "out") if name != "cohort.jsonl"]
    assert sorted(files) == sorted(record.file for record in read_records(folder / "out").values())
    assert 0 < len(files) < 64
    for index in range(60):
        (folder / "in" / f"z{index:02d}.tif").unlink()
    assert embed("in", "--num-workers", "0", more=ONE_BY_ONE) == 0
    assert {
        name: digest for name, digest in file_digests(folder / "out").items() if name in expected_one_by_one
    } == expected_one_by_one
