"""A command → its seconds and the most memory that its processes hold at a time, from start to end."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
SAMPLE_S = 0.25
_TAIL = 3000


class CommandError(Exception):
    """A command failed; the message has the end of what it printed."""


@dataclass(frozen=True, kw_only=True)
class CommandRun:
    """What a command took.

    Attributes:
        seconds: From its start to its end, that of Python and its imports included.
        peak_bytes: Proportional set size of the command and all processes below it, sampled four times a second: memory that
            several share counts once, where sums of resident sizes count it once for each. None where the system does not
            tell.
        own_peak_bytes: The same of the command's own process.
        other_peak_bytes: The same of the largest other one.
        output: What it printed on stdout.
    """

    seconds: float
    peak_bytes: int | None
    own_peak_bytes: int | None = None
    other_peak_bytes: int | None = None
    output: str


def run_command(
    command: Sequence[str | Path], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> CommandRun:
    """Runs a command and watches it.

    Args:
        command: Program and arguments.
        cwd: Where it runs.
        environment: Variables beside or in place of this process's.

    Returns:
        What it took.

    Raises:
        CommandError: It ended with another code than 0.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ended = threading.Event()
    whole = own = other = 0

    def watch() -> None:
        nonlocal whole, own, other
        while not ended.wait(SAMPLE_S):
            sizes = tree_bytes(process.pid)
            whole = max(whole, sum(sizes.values()))
            own = max(own, sizes.pop(process.pid, 0))
            other = max([other, *sizes.values()])

    watcher = threading.Thread(target=watch, daemon=True)
    if sys.platform == "linux":
        watcher.start()
    output, errors = process.communicate()
    seconds = time.perf_counter() - start
    ended.set()
    if watcher.is_alive():
        watcher.join()
    if process.returncode != 0:
        raise CommandError(
            f"{command[0]} {command[1]}: ended with {process.returncode}\n{output[-_TAIL:]}\n{errors[-_TAIL:]}"
        )
    return CommandRun(
        seconds=seconds,
        peak_bytes=whole or None,
        own_peak_bytes=own or None,
        other_peak_bytes=other or None,
        output=output,
    )


def tree_bytes(pid: int) -> dict[int, int]:
    """Measures a process and all below it: process → proportional set size in bytes; those that end meanwhile are absent."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                # the name in parentheses may hold spaces; the parent is the second word after it
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = {}, [pid]
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        try:
            lines = (PROC / str(one) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found[one] = sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return found
