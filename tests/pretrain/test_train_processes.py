"""Runs in processes of their own: two against one, killed, told to stop, and the command line."""

import json
import os
import signal

import pytest
import torch
from PIL import Image
from support.pretraining import (
    NUM_STEPS,
    change,
    kill,
    lines,
    run,
    small,
    start,
    student,
    teacher,
    wait_for,
    write_config,
    write_patches,
)

from timm_mvhybrid.pretrain.train import train
from timm_mvhybrid.training.checkpoint import find_damage, finished_steps
from timm_mvhybrid.training.world import can_shard_on_cpu

pytest.importorskip("lightly")
pytestmark = pytest.mark.distributed
needs_cpu_sharding = pytest.mark.skipif(not can_shard_on_cpu(), reason="this torch's FSDP needs a GPU")

# every parallel path is taken by it: state-space and attention blocks, both heads, uneven masks
CHANGES = {"model__name": "test_mvhybrid", "loss__regularizer_scope": "world", "monitor__by_kind": True}


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches") / "patches.h5")


@pytest.fixture(scope="module")
def one(patches, tmp_path_factory):
    """One process, never interrupted."""
    config = small(tmp_path_factory.mktemp("one") / "run", patches, **CHANGES)
    train(config, show_progress=False)
    return config


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """The same by two processes."""
    folder = tmp_path_factory.mktemp("two")
    config = change(one, output=folder / "run")
    run(write_config(config, folder / "config.json"), ranks=2)
    return config


@needs_cpu_sharding
def test_two_processes_equal_one(one, two):
    # the first two steps have next to no learning rate
    assert largest_difference(student(one.output), student(two.output)) <= 5e-5
    assert largest_difference(teacher(one.output), teacher(two.output)) <= 5e-5
    shares = [line["throughput/share_collectives"] for line in lines(two.output) if len(line) == 3]
    assert len(shares) == 1
    assert 0 < shares[0] < 1
    steps = [line for line in lines(two.output) if len(line) > 3]
    for first, second in zip(lines(one.output), steps, strict=True):
        for name in ("loss/total", "loss/ibot", "loss/koleo", "grad_norm/backbone", "grad_norm/ibot_head"):
            assert first[name] == pytest.approx(second[name], rel=1e-4), name
        by_kind = {name for name in first if name.startswith("grad_norm_by_kind/")}
        assert "grad_norm_by_kind/A_log" in by_kind
        assert by_kind == {name for name in second if name.startswith("grad_norm_by_kind/")}
        for name in by_kind:
            assert first[name] == pytest.approx(second[name], rel=1e-3, abs=1e-9), name
        # of the images of one process
        measured = {
            name for name in first if name.startswith(("block_rms/", "mixer_gain/", "delta/", "A_log/"))
        }
        assert "block_rms/00" in measured
        assert all(second[name] == second[name] for name in measured)


@needs_cpu_sharding
def test_a_run_of_two_processes_goes_on_with_two_bit_for_bit_and_with_one_closely(two, tmp_path, capsys):
    for ranks, tolerance in ((2, 0.0), (1, 1e-6)):
        config = change(two, output=tmp_path / f"{ranks}")
        file = write_config(config, tmp_path / f"{ranks}.json")
        for name in ("config.json", "metrics.jsonl"):
            (config.output / "checkpoints").mkdir(parents=True, exist_ok=True)
            (config.output / name).write_bytes((two.output / name).read_bytes())
        _copy(two.output / "checkpoints/step_00000004", config.output / "checkpoints/step_00000004")
        if ranks == 2:
            _, errors = run(file, ranks=2)
        else:
            train(config)
            errors = capsys.readouterr().err
        assert "resumed after step 4" in errors
        assert largest_difference(student(config.output), student(two.output)) <= tolerance


def _copy(source, target):
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def test_a_run_killed_while_it_writes_goes_on_to_the_same_weights_bit_for_bit(one, tmp_path):
    config = change(one, output=tmp_path / "run")
    file = write_config(config, tmp_path / "config.json")
    process = start(file)
    checkpoints = config.output / "checkpoints"
    wait_for(checkpoints / ".step_00000004.tmp", process)
    kill(process)
    assert not (config.output / "teacher.safetensors").exists()
    assert all(find_damage(checkpoints / f"step_{step:08d}") is None for step in finished_steps(checkpoints))
    train(config, show_progress=False)
    assert largest_difference(student(config.output), student(one.output)) == 0
    assert largest_difference(teacher(config.output), teacher(one.output)) == 0
    assert [line["step"] for line in lines(config.output)] == list(range(1, NUM_STEPS + 1))
    assert not list(config.output.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("ranks", "number"), [(1, signal.SIGUSR1), pytest.param(2, signal.SIGTERM, marks=needs_cpu_sharding)]
)
def test_a_signal_saves_the_step_and_exits_with_75_or_through_torchrun_and_the_run_goes_on(
    one, tmp_path, ranks, number
):
    config = change(one, output=tmp_path / "run", num_steps=400, optimizer__warmup_steps=2)
    file = write_config(config, tmp_path / "config.json")
    process = start(file, ranks=ranks)
    wait_for(config.output / "checkpoints/step_00000002", process)
    os.kill(process.pid, number) if ranks == 1 else os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=240)
    if ranks == 1:
        assert process.returncode == 75, errors
        assert json.loads(output)["stopped_by"] == signal.Signals(number).name
    newest = max(finished_steps(config.output / "checkpoints"))
    assert newest < 400
    assert f"after step {newest}, saved" in errors
    assert newest == lines(config.output)[-1]["step"]


@needs_cpu_sharding
def test_what_is_sharded_in_bfloat16_keeps_scan_parameters_in_float32_and_is_probed(patches, tmp_path):
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(4):
            colour = (40 * number, 100, 200 if label == "a" else 20)
            Image.new("RGB", (64, 64), colour).save(tmp_path / "set" / label / f"{number}.png")
    changes = {"num_steps": 2, "monitor__probe": tmp_path / "set", "monitor__probe_every_steps": 1}
    config = small(
        tmp_path / "run",
        patches,
        parallel__precision="bf16",
        parallel__sharding="hybrid",
        **CHANGES,
        **changes,
    )
    config = change(config, parallel__shard_size=2, parallel__activation_checkpointing=True)
    _, errors = run(write_config(config, tmp_path / "config.json"), ranks=2)
    values = student(config.output)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in values.values())
    assert "Traceback" not in errors
    assert [line["step"] for line in lines(config.output) if "probe/knn_accuracy" in line] == [1, 2]
