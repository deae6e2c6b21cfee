"""Source distributions of mamba-ssm and causal-conv1d → wheels for this GPU, built and installed without a network."""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

PACKAGES = {"causal_conv1d": "causal_conv1d_cuda", "mamba_ssm": "selective_scan_cuda"}
"""Packages in the order in which they are built, and the extension of each."""

NVCC = """#!{python}
import os, sys
arguments, kept = sys.argv[1:], []
while arguments:
    word = arguments.pop(0)
    if word in ("-gencode", "--generate-code"):
        target = arguments.pop(0)
        if target.endswith("sm_{capability}"):
            kept += [word, target]
    else:
        kept.append(word)
if "--version" not in kept and "-gencode" not in kept:
    kept += ["-gencode", "arch=compute_{capability},code=sm_{capability}"]
os.execv("{nvcc}", ["{nvcc}", *kept])
"""
"""A compiler that builds for one GPU only: the packages name every architecture, which takes many times as long."""


class BuildError(Exception):
    """A wheel could not be built or installed; the message holds the end of the log."""


def build_and_install(folder: Path, device: torch.device) -> list[str]:
    """Builds and installs what is not yet installed.

    Args:
        folder: Holds ``mamba_ssm-*.tar.gz`` and, optionally, ``causal_conv1d-*.tar.gz``.
        device: The GPU to build for.

    Returns:
        One line a package: what was done, or why nothing was.

    Raises:
        BuildError: There is no compiler, or it fails.
    """
    lines = []
    for package, extension in PACKAGES.items():
        if importlib.util.find_spec(extension) is not None:
            lines.append(f"{package}: already installed")
            continue
        archives = sorted(folder.glob(f"{package}-*.tar.gz")) + sorted(
            folder.glob(f"{package.replace('_', '-')}-*.tar.gz")
        )
        if not archives:
            lines.append(f"{package}: no source distribution in {folder.name}/, not built")
            continue
        _build(archives[-1], device)
        importlib.invalidate_caches()
        if importlib.util.find_spec(extension) is None:
            raise BuildError(f"{archives[-1].name}: installed, but there is no module {extension}")
        lines.append(f"{package}: built from {archives[-1].name}")
    return lines


def _build(archive: Path, device: torch.device) -> None:
    """Builds one wheel and installs it."""
    nvcc = shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
    if nvcc is None:
        raise BuildError(
            f"{archive.name}: no nvcc; install the CUDA toolkit that torch {torch.__version__} wants"
        )
    major, minor = torch.cuda.get_device_capability(device)
    with tempfile.TemporaryDirectory() as folder:
        compiler = Path(folder, "nvcc")
        compiler.write_text(
            NVCC.format(python=sys.executable, nvcc=nvcc, capability=f"{major}{minor}"), encoding="utf-8"
        )
        compiler.chmod(0o755)
        environment = {
            **os.environ,
            "PYTORCH_NVCC": str(compiler),
            # without these the packages ask their release page for a ready wheel first
            "MAMBA_FORCE_BUILD": "TRUE",
            "CAUSAL_CONV1D_FORCE_BUILD": "TRUE",
            "MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count() or 1)),
            "CUDA_HOME": os.environ.get("CUDA_HOME", str(Path(nvcc).resolve().parents[1])),
        }
        pip = [sys.executable, "-m", "pip"]
        offline = ["--no-index", "--no-deps"]
        _run([*pip, "wheel", "--no-build-isolation", *offline, "-w", folder, str(archive)], environment)
        wheels = [str(wheel) for wheel in Path(folder).glob("*.whl")]
        # an earlier installation may lack the extension
        _run([*pip, "install", "--force-reinstall", *offline, *wheels], environment)


def _run(command: list[str], environment: dict[str, str]) -> None:
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        log = (result.stdout + result.stderr).strip().splitlines()
        raise BuildError(f"{' '.join(command[1:5])} … failed:\n" + "\n".join(log[-30:]))
