"""Disks that take no more: a limit on the size of files in a process of its own, and a small tmpfs."""

import contextlib
import errno
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import pytest

from timm_mvhybrid.runtime.atomic_file import OutputFile

SIZE = 64 * 2**20
BALLAST = "ballast"


def at_every_byte(check, sizes, start="fork"):
    """Calls `check(k)` in another process that cannot write files beyond byte k.

    The system itself refuses the write, after the part of it that fits, in whatever library it is. A process that is
    spawned also shows whether the library crashes at its end.
    """
    process = get_context(start).Process(target=_limited, args=(check, list(sizes)))
    process.start()
    process.join(240)
    assert process.exitcode == 0, f"ended with {process.exitcode}"


def _limited(check, sizes):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in sizes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        check(size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def refusing(num_bytes):
    """A class in place of ``OutputFile`` whose disk is full after so many bytes."""

    class Refusing(OutputFile):
        def write(self, content, /):
            if self._position + memoryview(content).nbytes > num_bytes and self._failure is None:
                self._failure = OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    return Refusing


@cache
def _namespace():
    for options in (["-m"], ["-rm"]):
        command = ["unshare", *options, "mount", "-t", "tmpfs", "none", "/mnt"]
        try:
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return ["unshare", *options]
        except FileNotFoundError:
            break
    return None


def on_small_disk(folder, command, **options):
    """Runs a shell command in a mount namespace in which `folder`/small is a tmpfs of `SIZE`; its code, out and err."""
    if _namespace() is None:
        pytest.skip("no mount namespace may be opened here, so there is no small disk")
    (folder / "small").mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size={SIZE} none small && {command}"
    result = subprocess.run(
        [*_namespace(), "sh", "-c", mount],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        **{"timeout": 240, **options},
    )
    return result.returncode, result.stdout, result.stderr


def leave(num_bytes, disk=Path("small")):
    """Fills a disk until so much is free, or empties what filled it."""
    (disk / BALLAST).unlink(missing_ok=True)
    if num_bytes is not None:
        with (disk / BALLAST).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - num_bytes)


def try_all(cases):
    """Runs each command on a full disk, and again when there is room; in one process, for their imports take long."""
    from timm_mvhybrid.cli import main

    results = {}
    for name, (num_bytes, arguments) in cases.items():
        for path in Path("small").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        attempts = []
        for free in (num_bytes, None):
            leave(free)
            with (
                contextlib.redirect_stderr(io.StringIO()) as errors,
                contextlib.redirect_stdout(io.StringIO()),
            ):
                code = main(arguments)
            files = [
                str(path) for path in Path("small").rglob("*") if path.is_file() and path.name != BALLAST
            ]
            attempts.append((code, errors.getvalue(), sorted(files)))
        results[name] = attempts
    return results


if __name__ == "__main__":
    print(json.dumps(try_all(json.loads(Path(sys.argv[1]).read_text()))))
