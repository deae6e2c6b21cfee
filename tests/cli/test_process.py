import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from timm_mvhybrid.cli import main
from timm_mvhybrid.ops import implementation

MISSPELT = (
    "error: environment variable TIMM_MVHYBRID_IMPLEMENTATION is 'cudaa'; expected one of auto, reference, cpu, "
    "numba, triton, mamba_ssm\n"
)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_ctrl_c_stops_a_process_with_workers(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "0000.png")
    for index in range(1, 3000):
        os.link(tmp_path / "images" / "0000.png", tmp_path / "images" / f"{index:04d}.png")
    options = (
        "--model test_mvhybrid --output out.h5 --batch-size 1 --num-workers 2 --log log.jsonl --log-every 1"
    )
    # a shell lets its background jobs ignore the signal, and the suite may be one
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('timm_mvhybrid', run_name='__main__', alter_sys=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "embed", "images", *options.split()],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            log = tmp_path / "log.jsonl"
            deadline = time.monotonic() + 60
            while not (log.exists() and '"progress"' in log.read_text()):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert any(name.endswith(".tmp") for name in os.listdir(tmp_path))
            # a terminal sends the signal to the workers, too
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=240)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; no output was written"
    assert "Traceback" not in errors
    assert sorted(os.listdir(tmp_path)) == ["images", "log.jsonl"]


def test_a_misspelt_implementation_ends_every_command_in_one_sentence():
    environment = {**os.environ, "TIMM_MVHYBRID_IMPLEMENTATION": "cudaa"}
    environment.pop("RANK", None)
    command = [sys.executable, "-m", "timm_mvhybrid", "models"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", MISSPELT)


@pytest.fixture
def misspelt(monkeypatch):
    """In this process, for the one above has shown that the import passes."""
    monkeypatch.setenv("TIMM_MVHYBRID_IMPLEMENTATION", "cudaa")
    monkeypatch.setattr(implementation, "_requested", "cudaa")


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"]], ids=" ".join)
def test_a_misspelt_implementation_is_said_before_any_help(arguments, misspelt, capsys):
    assert main(arguments) == 1
    assert tuple(capsys.readouterr()) == ("", MISSPELT)


@pytest.mark.parametrize("method", ["pretrain", "finetune"])
def test_what_torchrun_starts_is_the_command(method, misspelt, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [method, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"timm_mvhybrid.{method}", run_name="__main__", alter_sys=True)
    assert end.value.code == 1
    assert tuple(capsys.readouterr()) == ("", MISSPELT)


def test_the_doctor_examines_the_rest_where_the_implementation_is_misspelt(misspelt, capsys):
    assert main(["doctor", "--json"]) == 1
    output, errors = capsys.readouterr()
    assert errors == ""
    found = json.loads(output)
    assert found["environment"]["TIMM_MVHYBRID_IMPLEMENTATION"] == "cudaa"
    assert found["found"][0]["complaint"].startswith(
        "environment variable TIMM_MVHYBRID_IMPLEMENTATION is 'cudaa'"
    )
    assert {trial["what"]: trial["works"] for trial in found["trials"]}["test_vit12"]


def test_an_implementation_that_cannot_run_ends_a_command_in_one_sentence(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "patch.png")
    monkeypatch.setattr(implementation, "_requested", "mamba_ssm")
    options = ("--model", "test_mvhybrid", "--device", "cpu", "--output", str(tmp_path / "out.h5"))
    assert main(["embed", str(tmp_path), *options]) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: implementation 'mamba_ssm' was requested")
