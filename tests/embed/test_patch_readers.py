"""Processes that read: what they load, and what they leave of the program that starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.generated_slides import write_slide

from timm_mvhybrid.data import SlideInput, TilingOptions
from timm_mvhybrid.embed import patch_reading
from timm_mvhybrid.embed.patch_readers import PatchReaders, ReaderTask
from timm_mvhybrid.embed.slide_opening import SlideOpening
from timm_mvhybrid.runtime.reads_only import READS_ONLY


def opening(path):
    return SlideOpening(slide=SlideInput(slide_id="a", path=path), tiling=TilingOptions(), known={})


def ask(readers, request):
    readers.give(ReaderTask(name="a slide", request=request, owner=None))
    for _ in range(600):
        for _task, answer in readers.wait([], 0.1):
            return answer
    raise AssertionError("no answer")


@pytest.fixture
def readers():
    found = PatchReaders(1, timeout_s=60, max_attempts=1, on_warning=print)
    yield found
    found.close()


@pytest.mark.skipif(sys.platform != "linux", reason="memory maps are Linux's")
def test_a_reader_holds_no_torch(readers, tmp_path):
    write_slide(tmp_path / "a.tif")
    assert ask(readers, opening(tmp_path / "a.tif")).state == "open"
    maps = Path(f"/proc/{readers._readers[0].process.pid}/maps").read_text()
    assert "h5py" in maps
    assert "libtorch" not in maps


def test_what_it_was_started_with_is_put_back():
    main = sys.modules["__main__"]
    PatchReaders(1, timeout_s=60, max_attempts=1, on_warning=print).close()
    assert sys.modules["__main__"] is main
    assert READS_ONLY not in os.environ
    if hasattr(patch_reading.signal, "pthread_sigmask"):
        blocked = patch_reading.signal.pthread_sigmask(patch_reading.signal.SIG_BLOCK, ())
        assert not blocked & patch_reading.STOPPING_SIGNALS


def test_elsewhere_the_package_has_its_models():
    code = "import timm_mvhybrid, timm; print(timm.is_model('mvhybrid_small_patch16_256'), timm_mvhybrid.create_model.__name__)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "create_model"]


def test_a_program_without_a_guard_may_read(tmp_path):
    write_slide(tmp_path / "a.tif")
    script = tmp_path / "program.py"
    script.write_text(
        "import sys\n"
        "from timm_mvhybrid.data import TilingOptions, list_slides\n"
        "from timm_mvhybrid.embed.embeddings import ForwardOptions\n"
        "from timm_mvhybrid.evaluate import embed_slides, load_backbone\n"
        "summary = embed_slides(list_slides([sys.argv[1]]), load_backbone('test_vit12'), sys.argv[2],\n"
        "    tiling=TilingOptions(patch_size_px=64), forward=ForwardOptions(num_workers=1, device='cpu'))\n"
        "print(summary.num_embedded)\n"
    )
    command = [sys.executable, script, tmp_path / "a.tif", tmp_path / "out"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("1", 0), done.stderr
