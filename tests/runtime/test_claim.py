import errno
import os
import signal
import subprocess
import sys

import pytest

import timm_mvhybrid
from timm_mvhybrid.runtime.atomic_file import check_unclaimed, claimed
from timm_mvhybrid.runtime.errors import OutputError

fcntl = pytest.importorskip("fcntl")

# the package itself builds models, so its place is taken by an empty one
ALONE = f"""
import sys, types
package = types.ModuleType("timm_mvhybrid")
package.__path__ = {list(timm_mvhybrid.__path__)}
sys.modules["timm_mvhybrid"] = package
"""
HOLD = f"""{ALONE}
from timm_mvhybrid.runtime.atomic_file import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes `out`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_later_process_is_refused_by_the_name_of_the_earlier(tmp_path, holder):
    output = tmp_path / "out"
    for attempt in (lambda: check_unclaimed(output), lambda: claimed(output).__enter__()):
        with pytest.raises(
            OutputError, match=rf"out: process {holder.pid} on .* is writing it; wait until that is done"
        ):
            attempt()
    with claimed(tmp_path / "other"):
        pass
    holder.communicate("")
    with claimed(output):
        assert os.listdir(tmp_path) == [".out.lock"]
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_leaves_blocks_nobody(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert os.listdir(tmp_path) == [".out.lock"]
    check_unclaimed(tmp_path / "out")
    with claimed(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == []


def test_one_that_waits_comes_after_the_other(tmp_path):
    program = (
        f"{ALONE}\nimport pathlib\nfrom timm_mvhybrid.runtime.atomic_file import claimed\n"
        "for _ in range(50):\n"
        "    with claimed(sys.argv[1], wait=True):\n"
        "        path = pathlib.Path(sys.argv[1])\n"
        "        path.write_text(str(int(path.read_text()) + 1))\n"
    )
    (tmp_path / "out").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "out")]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "out").read_text() == "150"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_does_not_keep_the_claim(tmp_path):
    with claimed(tmp_path / "out"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
        forked = os.fork()
        if forked == 0:
            signal.pause()
    try:
        with claimed(tmp_path / "out"):
            pass
    finally:
        child.kill()
        child.wait()
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)


def test_a_file_system_without_locks_refuses_nothing(tmp_path, monkeypatch):
    def absent(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", absent)
    with claimed(tmp_path / "out"), claimed(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_takes_no_files_is_named(tmp_path):
    with (
        pytest.raises(OutputError, match=r"missing/out: cannot be written \(No such file"),
        claimed(tmp_path / "missing/out"),
    ):
        pass
