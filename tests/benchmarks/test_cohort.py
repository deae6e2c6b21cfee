import dataclasses
import os
import sys

import h5py
import numpy as np
import pytest
from benchmarks import cohort, processes
from benchmarks.agreement import DisagreementError
from benchmarks.settings import Settings

pytest.importorskip("openslide")


def test_a_smoke_run_reports_share_and_cost(monkeypatch):
    small = dataclasses.replace(cohort.QUICK, slide_px=(512, 512), model="test_vit12", tiny="test_vit12")
    monkeypatch.setattr(cohort, "QUICK", small)
    # in a thread: nothing is judged here
    monkeypatch.setattr(cohort, "NUM_READERS", 0)
    report = cohort.run(Settings(quick=True, threads=1), {}, ("share", "slides"))
    assert set(report.figures) == {cohort.share("test_vit12"), cohort.OVERHEAD}
    assert [row[1] for row in report.tables[0].rows] == 2 * ["from memory", "from slides"]
    assert report.tables[1].title.startswith("3 slides")
    assert not report.judged


def test_peers_that_are_not_named_are_noted_and_ours_runs(monkeypatch, tmp_path):
    def run_command(command, **options):
        # what a command leaves behind, without it
        folder = command[command.index("--output") + 1]
        folder.mkdir()
        with h5py.File(folder / "a.h5", "w") as file:
            file["coords"] = np.zeros((4, 2), int)
        return processes.CommandRun(seconds=2.0, peak_bytes=1 << 20, output="")

    monkeypatch.setattr(cohort, "run_command", run_command)
    monkeypatch.setattr(cohort, "_write_weights", lambda folder, model: folder / "weights.safetensors")
    report = cohort.run(Settings(quick=True), {cohort.TRIDENT: None, cohort.CLAM: None}, ("peers",))
    assert report.figures == {}
    assert report.tables[0].rows[0][:5] == [cohort.OURS, "4", "2.0", "500.0", "1"]
    assert [note.split()[0] for note in report.notes] == [cohort.TRIDENT, cohort.CLAM]


def test_a_run_without_patches_stops_the_benchmark(tmp_path):
    with pytest.raises(DisagreementError, match="no patch was embedded"):
        cohort.count_patches(tmp_path, "*.h5")


def test_seconds_a_tile_begin_with_the_first_file(tmp_path):

    for name, tiles, when in (("b", 100, 10), ("a", 5, 12), ("c", 7, 16)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["coords"] = np.zeros((tiles, 2), int)
        os.utime(tmp_path / f"{name}.h5", ns=(when * 10**9, when * 10**9))
    assert cohort.seconds_a_tile(tmp_path) == pytest.approx(6 / 12)


def test_a_command_is_watched_with_its_children():
    code = (
        "import subprocess, sys, time\n"
        "held = bytearray(b'x' * (64 << 20))\n"
        "child = 'import time; held = bytearray(b\"y\" * (64 << 20)); time.sleep(1.2)'\n"
        "subprocess.run([sys.executable, '-c', child])\n"
        "print('done')"
    )
    found = processes.run_command([sys.executable, "-c", code])
    assert found.output == "done\n"
    assert found.seconds > 1.2
    if sys.platform == "linux":
        assert found.peak_bytes > 128 << 20


def test_a_command_that_fails_says_what_it_printed():
    with pytest.raises(processes.CommandError, match=r"(?s)ended with 3.*no such thing"):
        processes.run_command([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"])
