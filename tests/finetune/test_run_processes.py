"""Runs of MINT and STAMP in processes of their own: two against one, and told to stop."""

import json
import os
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from support.finetuning import mint_settings, stamp_settings, write_cohorts, write_config
from support.forked import run_module, threads_of
from support.pretraining import change, lines, wait_for

from timm_mvhybrid.finetune.runs import run_mint, run_stamp
from timm_mvhybrid.training.world import can_shard_on_cpu

pytest.importorskip("lightly")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.distributed
needs_cpu_sharding = pytest.mark.skipif(not can_shard_on_cpu(), reason="this torch's FSDP needs a GPU")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_cohorts(tmp_path_factory.mktemp("cohorts"))


def settings(method, output, manifest, **changes):
    if method == "mint":
        return mint_settings(output, manifest, **changes)
    pytest.importorskip("peft")
    # each process draws its own dropout
    return stamp_settings(output, manifest, stamp__dropout=0.0, **changes)


def start(method, file):
    """Starts a run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "timm_mvhybrid.finetune", method, "--config", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads_of(1))},
        start_new_session=True,
    )


def largest_difference(folder, other):
    found = []
    for name in ("encoder.safetensors", "st_model.safetensors"):
        if (folder / name).exists():
            a, b = load_file(folder / name), load_file(other / name)
            assert a.keys() == b.keys()
            found += [(a[key] - b[key]).abs().max().item() for key in a]
    return max(found)


@needs_cpu_sharding
@pytest.mark.parametrize("method", ["mint", "stamp"])
def test_two_processes_equal_one(method, manifest, tmp_path):
    one = settings(method, tmp_path / "one", manifest)
    (run_mint if method == "mint" else run_stamp)(one, show_progress=False)
    two = change(one, output=tmp_path / "two")
    file = write_config(two, tmp_path / "two.json")
    # torchrun, and the interpreters that it starts, are seen to do in tests of pretraining
    code, _, errors = run_module("timm_mvhybrid.finetune", [method, "--config", file], ranks=2)
    assert code == 0, errors
    assert largest_difference(one.output, two.output) <= 1e-5
    for first, second in zip(lines(one.output), lines(two.output), strict=True):
        for name in first.keys() & second.keys():
            if name.startswith(("loss/", "probe/")) and "retrieval" not in name:
                assert first[name] == pytest.approx(second[name], rel=1e-4, abs=1e-4), name


def test_a_signal_saves_the_step_exits_with_75_and_the_run_goes_on(manifest, tmp_path):
    config = settings("mint", tmp_path / "run", manifest, num_steps=400)
    file = write_config(config, tmp_path / "config.json")
    process = start("mint", file)
    wait_for(config.output / "checkpoints" / "step_00000002", process)
    os.kill(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 75, errors
    stopped = json.loads(output)
    assert stopped["stopped_by"] == "SIGTERM"
    assert (config.output / "checkpoints" / f"step_{stopped['step']:08d}").is_dir()
    assert "start again to go on" in errors
    done = change(config, num_steps=stopped["step"])
    assert run_mint(done, allow_changes=True, show_progress=False).weights is not None


@needs_cpu_sharding
def test_what_is_sharded_in_bfloat16_is_measured_in_it(manifest, tmp_path):
    config = settings("mint", tmp_path / "run", manifest, num_steps=1, parallel__precision="bf16")
    file = write_config(config, tmp_path / "config.json")
    code, _, errors = run_module("timm_mvhybrid.finetune", ["mint", "--config", file], ranks=2)
    assert code == 0, errors
    start_line = lines(config.output)[0]
    assert start_line["probe/expression_class"] == pytest.approx(
        start_line["probe/expression_frozen"], abs=0.1
    )
