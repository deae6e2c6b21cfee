"""The Slurm script starts what it says on every node, and queues the job again for code 75 alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from timm_mvhybrid.cli.pretrain import parse_pretrain

ARGUMENTS = ["--preset", "paper", "--output", "/runs/two words", "--data.sources", "a.h5"]
SCRIPT = Path(__file__).parents[1] / "examples" / "slurm" / "pretrain.sbatch"

# runs the task of each node in turn, or of one node in place of itself; reports the highest code, as srun does
SRUN = """#!/usr/bin/env bash
echo "srun $*" | head -n 1 | cut -c -80 >>"$RECORD/calls"
while [[ $1 == --* ]]; do shift; done
if [[ $SLURM_JOB_NUM_NODES -eq 1 ]]; then
    echo $$ >"$RECORD/task"
    exec "$@"
fi
highest=0
for node in $(seq "$SLURM_JOB_NUM_NODES"); do
    NODE=$node "$@"
    code=$?
    [[ $code -le $highest ]] || highest=$code
done
exit $highest
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then
    printf 'node07\\nnode08\\n'
else
    echo "scontrol $*" >>"$RECORD/calls"
fi
"""
# one process a node is enough; like torchrun, it makes 1 of every code that is not 0
TORCHRUN = """#!/usr/bin/env bash
options=()
while [[ $1 == --* && $1 != --no-python ]]; do options+=("$1"); shift; done
echo "torchrun ${options[*]}" >>"$RECORD/calls"
shift
LOCAL_RANK=0 "$@" || exit 1
"""
PYTHON = """#!/usr/bin/env bash
echo "python $*" >>"$RECORD/calls"
code=CODE
if [[ -n ${FAILING_NODE:-} && $NODE -eq ${FAILING_NODE:-} ]]; then code=1; fi
exit $code
"""
# runs until it is asked to stop; a second signal acts as it did before, like that of the training
WAITING = """import os, signal, sys, time
stopped, before = [], {}
def catch(number, frame):
    stopped.append(number)
    for caught, handler in before.items():
        signal.signal(caught, handler)
for number in (signal.SIGTERM, signal.SIGUSR1):
    before[number] = signal.signal(number, catch)
open(os.path.join(os.environ["RECORD"], "ready." + os.environ["LOCAL_RANK"]), "w").close()
deadline = time.monotonic() + 60
while not stopped and time.monotonic() < deadline:
    time.sleep(0.02)
time.sleep(0.3)  # the checkpoint
sys.exit(75 if stopped == [signal.SIGUSR1] else 1)
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Slurm and its scripts are POSIX")


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A job of two nodes with eight GPUs each; returns the folder where the commands leave what they were told."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": TORCHRUN}.items():
        write_program(programs / name, text)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RECORD": str(tmp_path),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[07-08]",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "64",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("PYTHON", "MASTER_PORT", "SLURM_RESTART_COUNT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run_job(cluster, code, *arguments):
    write_program(cluster / "bin" / "python", PYTHON.replace("CODE", str(code)))
    result = subprocess.run(
        ["bash", SCRIPT, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    return result, (cluster / "calls").read_text().splitlines()


def test_syntax():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_each_node_starts_one_torchrun_that_meets_on_the_first(cluster):
    result, calls = run_job(cluster, 0, *ARGUMENTS)
    assert (result.returncode, result.stderr) == (0, "")
    assert calls[0].startswith("srun --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=")
    (torchrun,) = {call for call in calls if call.startswith("torchrun")}
    for option in (
        "--nnodes=2",
        "--nproc-per-node=8",
        "--max-restarts=0",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=node07:24711",
        "--rdzv-id=4711-0",
    ):
        assert option in torchrun.split()
    python = [call for call in calls if call.startswith("python")]
    started = "python -m timm_mvhybrid.pretrain --preset paper --output /runs/two words --data.sources a.h5"
    assert python == [f"{started} --parallel.sharding hybrid --parallel.shard-size 8"] * 2
    assert not any("requeue" in call for call in calls)


def test_the_training_takes_what_the_script_adds():
    added = ["--parallel.sharding", "hybrid", "--parallel.shard-size", "8"]
    parallel = parse_pretrain([*ARGUMENTS, *added]).config.parallel
    assert (parallel.sharding, parallel.shard_size) == ("hybrid", 8)


@pytest.mark.parametrize(
    "arguments", [["--parallel.sharding", "full"], ["--parallel.sharding=full"], ["--config", "run.yaml"]]
)
def test_the_callers_sharding_stands(cluster, arguments):
    _, calls = run_job(cluster, 0, *arguments)
    assert f"python -m timm_mvhybrid.pretrain {' '.join(arguments)}" in calls


def test_one_node_leaves_sharding_to_the_run(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    _, calls = run_job(cluster, 0, "--preset", "smoke")
    assert "python -m timm_mvhybrid.pretrain --preset smoke" in calls


def test_a_restart_meets_anew(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    _, calls = run_job(cluster, 0)
    assert any("--rdzv-id=4711-3" in call for call in calls)


def test_a_run_that_was_stopped_is_queued_again(cluster):
    result, calls = run_job(cluster, 75)
    assert result.returncode == 0
    assert calls[-1] == "scontrol requeue 4711"
    assert [call.split()[0] for call in calls].count("scontrol") == 1


@pytest.mark.parametrize("code", [1, 2, 76, 130, 137])
def test_a_failure_is_not_queued_again(cluster, code):
    result, calls = run_job(cluster, code)
    assert result.returncode not in (0, 75)
    assert not any("requeue" in call for call in calls)


def test_a_failure_of_one_node_outranks_the_others_that_stopped(cluster, monkeypatch):
    monkeypatch.setenv("FAILING_NODE", "2")
    result, calls = run_job(cluster, 75)
    assert result.returncode == 76
    assert not any("requeue" in call for call in calls)


def wait_for(path, process, timeout=240.0):
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run_until_signalled(cluster, monkeypatch, number, num_processes):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", str(num_processes))
    program = cluster / "waiting.py"
    program.write_text(WAITING)
    write_program(cluster / "bin" / "python", f'#!/usr/bin/env bash\nexec {sys.executable} "{program}"\n')
    with subprocess.Popen(
        ["bash", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for rank in range(num_processes):
                wait_for(cluster / f"ready.{rank}", process)
            # Slurm signals the task of the node and none of the processes below it; here it does so twice
            task = int((cluster / "task").read_text())
            os.kill(task, number)
            time.sleep(0.1)
            os.kill(task, signal.SIGTERM)
            output, _ = process.communicate(timeout=240)
        finally:
            process.kill()
    return process.returncode, output, (cluster / "calls").read_text().splitlines()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_reaches_the_training_which_has_time_to_save(cluster, monkeypatch, number):
    # a second signal arrives while it saves, and may not end it
    code, output, calls = run_until_signalled(cluster, monkeypatch, number, 1)
    assert code == 0, output
    assert calls[-1] == "scontrol requeue 4711"


@pytest.mark.distributed
def test_torchrun_itself_stands_between_without_harm(cluster, monkeypatch):
    (cluster / "bin" / "torchrun").unlink()
    write_program(
        cluster / "bin" / "torchrun",
        f'#!/usr/bin/env bash\nexec {sys.executable} -m torch.distributed.run "$@"\n',
    )
    write_program(cluster / "bin" / "scontrol", SCONTROL.replace("node07", "localhost"))
    monkeypatch.setenv("MASTER_PORT", "0")
    code, output, calls = run_until_signalled(cluster, monkeypatch, signal.SIGUSR1, 2)
    assert code == 0, output
    assert calls[-1] == "scontrol requeue 4711"
