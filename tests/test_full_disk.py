"""Every command on a disk that runs full: one sentence, whole files, and it goes on when there is room."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import limited_disks
from support.generated_patches import random_patches, write_hest
from support.generated_slides import write_slide
from support.limited_disks import on_small_disk
from support.pretraining import small, wait_for, write_config, write_patches
from support.results import expression

import timm_mvhybrid  # noqa: F401
from timm_mvhybrid.cli import main
from timm_mvhybrid.evaluate import load_backbone
from timm_mvhybrid.training.metrics_log import MetricsLog
from timm_mvhybrid.training.run_directory import RunDirectory

pytestmark = pytest.mark.slow
EMBED = ["embed", "hest.h5", "--model", "test_mvhybrid", "--output", "small/out.h5", "--device", "cpu", "--num-workers", "0"]  # fmt: skip
TILE = ["tile", "one.tif", "--output", "small/store", "--patch-size", "128"]
PREPARE = ["prepare", "visium", "visium/outs", "--slide", "visium/full.png", "--output", "small/T", "--sample", "V", "--study", "A"]  # fmt: skip
PHANTOM = ["phantom", "small/cohort", "--studies", "1", "--samples", "1", "--spots", "2", "--genes", "4"]
EVALUATE = [
    "evaluate",
    "retrieval",
    "images",
    "--model",
    "test_mvhybrid",
    "--device",
    "cpu",
    "--num-workers",
    "0",
]
PRETRAIN = ["pretrain", "--config", "config.json"]
EXPORT = ["export", "weights.safetensors", "--model", "test_mvhybrid", "--output", "small/export"]
ONNX = [
    "export-onnx",
    "test_vit12",
    "--output",
    "small/model.onnx",
    "--image-size",
    "32",
    "--skip-comparison",
]

# name → bytes that are free, the command, the file that its sentence names, and the whole files that stay
CASES = {
    "embed, at the first batch": (8192, EMBED, "small/out.h5", set()),
    "embed, at the end": (12288, EMBED, "small/out.h5", set()),
    "embed, the h5 of an AnnData": (8192, [*EMBED[:4], "--output", "small/out.h5ad", *EMBED[6:]], r"small/out\.h5ad", set()),
    "embed, an AnnData beside its h5": (40960, [*EMBED[:4], "--output", "small/out.h5ad", *EMBED[6:]], r"small/out\.h5ad", set()),
    "embed, its log": (0, [*EMBED, "--log", "small/log.jsonl"], "small/log.jsonl", {"small/log.jsonl"}),
    "tile, the thumbnail": (0, TILE, "small/store/thumbnails/one.png", {"small/store/tiling.jsonl"}),
    "tile, the patches": (65536, TILE, "small/store/one.h5", {"small/store/tiling.jsonl", "small/store/thumbnails/one.png"}),
    "tile, compressed patches": (24576, [*TILE, "--compression", "lzf"], "small/store/one.h5", {"small/store/tiling.jsonl", "small/store/thumbnails/one.png"}),
    "prepare": (65536, PREPARE, "small/T/patches/V.h5", set()),
    "phantom, a slide": (0, PHANTOM, "small/cohort/PHANTOM/wsis/GEN01-01.tif", set()),
    "phantom, patches": (2**18, PHANTOM, "small/cohort/PHANTOM/patches/GEN01-01.h5", set()),
    "export": (65536, EXPORT, r"/\S+/small/export/model\.safetensors", set()),
    "export-onnx": (65536, ONNX, "small/model.onnx", set()),
    "render": (16384, ["report", "render", "results.json", "--output", "small/report"], "small/report/index.html", set()),
    "plot": (16384, ["plot", "run", "--output", "small/curves.png"], "small/curves.png", set()),
    "evaluate, its cache": (0, [*EVALUATE, "--output", "out", "--cache", "small/cache"], r"small/cache/\S+\.h5", set()),
    "evaluate, its report": (8192, [*EVALUATE, "--output", "small/out", "--cache", "cache"], r"small/out/\S+", set()),
    "pretrain, its records": (0, PRETRAIN, "small/run/config.json", set()),
    "pretrain, its log": (16384, PRETRAIN, "small/run/metrics.jsonl", {f"small/run/{name}" for name in ("config.json", "environment.json", "starts.jsonl", "metrics.jsonl")}),
    "pretrain, a checkpoint": (2**20, PRETRAIN, "small/run/checkpoints/step_00000002", {f"small/run/{name}" for name in ("config.json", "environment.json", "starts.jsonl", "metrics.jsonl")}),
}  # fmt: skip
NEEDED = {
    "embed, an AnnData": "anndata",
    "embed, the h5 of an AnnData": "anndata",
    "export-onnx": "onnxruntime",
    "plot": "matplotlib",
    "prepare": "anndata",
    "pretrain": "lightly",
    "phantom": "anndata",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Inputs of all commands, on a disk that has room."""
    folder = tmp_path_factory.mktemp("full")
    write_hest(folder / "hest.h5", random_patches(24))
    write_slide(folder / "one.tif")
    if _is_installed("prepare"):
        from support.space_ranger_folders import visium

        visium(folder / "visium")
    for label, level in (("light", 220), ("dark", 60)):
        (folder / "images" / label).mkdir(parents=True)
        for index in range(3):
            pixels = np.random.default_rng(index).integers(
                level - 30, level + 30, (64, 64, 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(folder / "images" / label / f"{index}.png")
    save_file(load_backbone("test_mvhybrid").model.state_dict(), folder / "weights.safetensors")
    expression().write(folder / "results.json")
    (folder / "run").mkdir()
    with MetricsLog(RunDirectory(folder / "run")) as log:
        for step in range(1, 20):
            log.write(step, loss={"total": 1 / step})
    patches = write_patches(folder / "patches.h5")
    # workers, because a process that ends by an error must end them, too
    write_config(small("small/run", patches, data__num_workers=2), folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def results(folder):
    cases = {
        name: (num_bytes, arguments)
        for name, (num_bytes, arguments, *_) in CASES.items()
        if _is_installed(name)
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    code, out, err = on_small_disk(folder, f"{sys.executable} {limited_disks.__file__} cases.json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def _is_installed(name):
    needed = next((package for command, package in NEEDED.items() if name.startswith(command)), None)
    if name.startswith("export-onnx") and not hasattr(torch.onnx, "ops"):
        return False
    return needed is None or importlib.util.find_spec(needed) is not None


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_names_the_file_whole_files_stay_and_with_room_it_goes_on(results, name):
    if name not in results:
        pytest.skip("a package is missing")
    _, _, file, kept = CASES[name]
    (code, err, files), (code_with_room, err_with_room, files_with_room) = results[name]
    errors = [line for line in err.splitlines() if not line.startswith("warning: the weights")]
    assert len(errors) == 1, err
    assert re.match(
        rf"error: {file}: cannot be written \(No space left on device; [\d,]+ bytes needed, [\d,]+ free\); make room",
        errors[0],
    )
    assert code == 1
    assert set(files) == kept
    assert code_with_room == 0, err_with_room
    assert "error" not in err_with_room
    assert not [path for path in files_with_room if path.endswith((".tmp", ".lock"))]


@pytest.mark.distributed
def test_of_two_processes_each_ends_with_a_sentence(folder):
    pytest.importorskip("lightly")
    from timm_mvhybrid.training.world import can_shard_on_cpu

    if not can_shard_on_cpu():
        pytest.skip("this torch's FSDP needs a GPU")
    fill = f"{sys.executable} -c 'import sys; sys.path.insert(0, sys.argv[1]); from support.limited_disks import leave; leave(16384)' {Path(__file__).parent}"
    run = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2 -m timm_mvhybrid.pretrain --config config.json"
    code, _, err = on_small_disk(folder, f"{fill} && {run}")
    assert code == 1
    said = [line for line in err.splitlines() if line.startswith("rank ")]
    assert re.match(r"rank 0: error: small/run/metrics\.jsonl: cannot be written \(No space left", said[0])
    # torchrun may end it before it has noticed
    assert said[1:] in (
        [],
        [
            "rank 1: error: another process of this run ended; what it printed says why, and the run can be started again"
        ],
    )
    assert "[rank" not in err


def test_a_summary_that_nobody_takes_is_one_sentence(folder):
    program = f"{sys.executable} -m timm_mvhybrid models --json"
    code, _, err = on_small_disk(folder, f"{program} > /dev/full")
    assert (code, err) == (1, "error: standard output: cannot be written (No space left on device)\n")


def test_of_two_runs_to_one_output_the_later_is_refused_and_the_first_is_kept(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hest.h5").symlink_to(folder / "hest.h5")
    command = [sys.executable, "-m", "timm_mvhybrid", *EMBED[:5], "out.h5", *EMBED[6:], "--batch-size", "1"]
    first = subprocess.Popen(
        [*command, "--log", "log", "--log-every", "1"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(tmp_path / ".out.h5.lock", first)
        while not (tmp_path / ".out.h5.lock").read_text():
            assert first.poll() is None
        os.kill(first.pid, signal.SIGSTOP)
        code = main([*command[3:], "--overwrite"])
        out, said = capsys.readouterr()
        os.kill(first.pid, signal.SIGCONT)
        _, err = first.communicate(timeout=240)
    finally:
        first.kill()
        first.wait()
    assert (code, out) == (1, "")
    assert re.fullmatch(
        rf"error: out\.h5: process {first.pid} on \S+ is writing it; wait until that is done, or choose another place\n",
        said,
    )
    assert first.returncode == 0, err
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["embeddings"].shape == (24, 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hest.h5", "log", "out.h5"]
