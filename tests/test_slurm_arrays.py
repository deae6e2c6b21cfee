"""The scripts for arrays of Slurm: one cell, or one part of the slides, a task, queued again for code 75 alone."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "examples" / "slurm"
STARTED = {
    "study.sbatch": "study run {} --cell-index 5",
    # the fourth of sixteen tasks that are numbered from two
    "embed.sbatch": "embed {} --part 3/16",
}
PYTHON = """#!/usr/bin/env bash
echo "python $*" >>"$RECORD/calls"
exit CODE
"""
# asked to stop while it runs, it saves for a moment and says so
WAITING = """#!/usr/bin/env bash
trap 'sleep 0.3; exit 75' USR1
touch "$RECORD/ready"
for _ in $(seq 600); do sleep 0.1; done
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$RECORD/calls"
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Slurm and its scripts are POSIX")


@pytest.fixture
def environment(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text(SCONTROL)
    (programs / "scontrol").chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RECORD": str(tmp_path),
        "PYTHON": str(programs / "python"),
        "SLURM_ARRAY_JOB_ID": "4711",
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_ARRAY_TASK_MIN": "2",
        "SLURM_ARRAY_TASK_COUNT": "16",
    }


def write_python(environment, text):
    path = Path(environment["PYTHON"])
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize("script", STARTED)
@pytest.mark.parametrize(
    ("code", "found", "requeued"), [(0, 0, False), (1, 1, False), (3, 3, False), (75, 0, True)]
)
def test_a_task_runs_its_part_and_is_queued_again_where_it_was_stopped(
    environment, tmp_path, script, code, found, requeued
):
    write_python(environment, PYTHON.replace("CODE", str(code)))
    command = ["bash", str(SCRIPTS / script), "two words.yaml", "--output", "out"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert result.returncode == found
    assert calls[0] == f"python -m timm_mvhybrid {STARTED[script].format('two words.yaml --output out')}"
    assert (calls[-1] == "scontrol requeue 4711_5") == requeued
    assert result.stderr == ""


@pytest.mark.parametrize("script", STARTED)
def test_a_signal_to_the_script_reaches_the_command(environment, tmp_path, script):
    import signal
    import time

    write_python(environment, WAITING)
    process = subprocess.Popen(
        ["bash", str(SCRIPTS / script), "study.yaml"], env=environment, stdout=subprocess.PIPE
    )
    end = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"stopped by a signal" in output
    assert "scontrol requeue 4711_5" in (tmp_path / "calls").read_text()
