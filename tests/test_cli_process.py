import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image


def test_help_needs_nothing_heavy():
    # the package itself registers its models, so its place is taken by an empty package
    code = (
        "import sys, types, importlib.util\n"
        "package = types.ModuleType('timm_mvhybrid')\n"
        "package.__path__ = list(importlib.util.find_spec('timm_mvhybrid').submodule_search_locations)\n"
        "sys.modules['timm_mvhybrid'] = package\n"
        "from timm_mvhybrid.cli import main\n"
        "try:\n    main(['embed', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'timm', 'numpy', 'h5py', 'PIL', 'openslide'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, stdout=subprocess.DEVNULL)


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
            _, errors = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; no output was written"
    assert "Traceback" not in errors
    assert sorted(os.listdir(tmp_path)) == ["images", "log.jsonl"]
