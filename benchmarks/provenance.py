"""This machine and this checkout → what a result must say about where it comes from."""

import datetime
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from timm_mvhybrid.runtime.provenance import installed_versions

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "timm", "triton", "mamba-ssm", "mambapy", "onnxruntime")
BUSY_CORES = 0.3
"""Cores kept busy by other processes from which on the times are not to be trusted."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where figures come from.

    Attributes:
        date: UTC, ISO 8601 to the second.
        hardware: Name of the GPU if it was measured, else of the CPU.
        cpu: Name of the CPU.
        cores: Logical cores.
        instructions: Of the CPU, those that speed up matrix products: AVX-512, bfloat16, AMX.
        threads: That torch may use.
        python: Version.
        packages: Versions of what takes part, by name.
        commit: Of this repository, with ``+changes`` if files differ from it, or ``unknown``.
        load_average: Over one minute before the run; None where the system does not tell.
        busy_cores: Cores kept busy by other processes in the second before the run; None where unknown.
    """

    date: str
    hardware: str
    cpu: str
    cores: int
    instructions: list[str]
    threads: int
    python: str
    packages: dict[str, str]
    commit: str
    load_average: float | None
    busy_cores: float | None

    @property
    def slug(self) -> str:
        """The hardware as part of a file name."""
        words = re.sub(r"\((R|TM)\)|CPU|@.*", " ", self.hardware)
        slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        return slug if self.hardware != self.cpu else f"{slug}-{self.threads}-threads"

    @property
    def warning(self) -> str | None:
        """One line if the machine was busy."""
        if self.busy_cores is None or self.busy_cores < BUSY_CORES:
            return None
        return (
            f"warning: other processes kept {self.busy_cores:.1f} of {self.cores} cores busy before the run; "
            "do not trust the times"
        )


def collect(threads: int, device: torch.device | None = None) -> Provenance:
    """Looks at the machine; takes a second, in which it watches what else runs.

    Args:
        threads: That torch will use.
        device: What is measured; the CPU by default.

    Returns:
        The provenance.
    """
    cpu, flags = _cpu()
    gpu = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
    return Provenance(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        hardware=gpu or cpu,
        cpu=cpu,
        cores=os.cpu_count() or 1,
        instructions=[flag for flag in wanted if flag in flags],
        threads=threads,
        python=platform.python_version(),
        packages=installed_versions(PACKAGES),
        commit=_commit(),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        busy_cores=_busy_cores(),
    )


def _cpu() -> tuple[str, set[str]]:
    """Reads name and instruction sets of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.machine(), set(flags[1].split()) if flags else set()


def _commit() -> str:
    """Names the commit of the checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _busy_cores(interval_s: float = 1.0) -> float | None:
    """Counts the cores that other processes keep busy while this one sleeps."""
    try:
        before = _busy_ticks()
        time.sleep(interval_s)
        ticks = _busy_ticks() - before
    except OSError:
        return None
    return round(ticks / os.sysconf("SC_CLK_TCK") / interval_s, 2)


def _busy_ticks() -> int:
    """Sums user, nice, system, interrupt and stolen time of all cores, in clock ticks."""
    user, nice, system, _idle, _wait, irq, softirq, steal = (
        int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return user + nice + system + irq + softirq + steal
