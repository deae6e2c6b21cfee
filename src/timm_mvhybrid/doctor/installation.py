"""Installed packages → their versions, and what is wrong with them; hardly anything is imported for it."""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from ..runtime.provenance import installed_version

REQUIRED = ("timm-mvhybrid", "timm", "torch", "huggingface_hub", "safetensors")
OPTIONAL = (
    "torchvision",
    "numba",
    "triton",
    "mamba-ssm",
    "causal-conv1d",
    "lightly",
    "openslide-python",
    "tiffslide",
)
PIPELINES = (
    "lazyslide",
    "slide2vec",
    "tiatoolbox",
    "kaiko-eva",
    "lightly-train",
    "thunder-bench",
    "atlas-patch",
    "hest",
    "trident",
)
# on PyPI these names belong to projects that have nothing to do with pathology
_NAMESAKES = {"hest": "hest.bench", "trident": "trident.patch_encoder_models"}
_EXTENSIONS = {
    "mamba-ssm": ("selective_scan_cuda", "mamba_ssm"),
    "causal-conv1d": ("causal_conv1d",),
}


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package.

    Attributes:
        name: Its name for pip.
        version: Its version; None if it is not installed.
        kind: ``required``, ``optional`` or ``pipeline``.
        note: What is wrong with it, or empty.
    """

    name: str
    version: str | None
    kind: str
    note: str = ""


def find_packages() -> tuple[Package, ...]:
    """Looks up every package that matters to this one."""
    kinds = {"required": REQUIRED, "optional": OPTIONAL, "pipeline": PIPELINES}
    return tuple(
        Package(name=name, version=installed_version(name), kind=kind, note=_note(name))
        for kind, names in kinds.items()
        for name in names
    )


def version_numbers(version: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version: (1, 0, 24) of "1.0.24.dev0"."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def import_failure(name: str) -> str | None:
    """Says why the compiled part of mamba-ssm or causal-conv1d, if installed, cannot be imported; None if it can."""
    for module in _EXTENSIONS[name]:
        if not _is_there(module):
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # an extension may fail with anything
            return f"{module}: {type(error).__name__}: {error}"
    return None


def is_vims_fork() -> bool:
    """Whether the installed mamba_ssm is the one that Vim ships with its code, told by its bimamba options."""
    spec = importlib.util.find_spec("mamba_ssm") if _is_there("mamba_ssm") else None
    if spec is None or not spec.origin:
        return False
    source = Path(spec.origin).parent / "modules" / "mamba_simple.py"
    return source.is_file() and "bimamba" in source.read_text(encoding="utf-8", errors="replace")


def _note(name: str) -> str:
    """Says what is wrong with a package."""
    if name in _NAMESAKES and installed_version(name) is not None and not _is_there(_NAMESAKES[name]):
        return f"another project of that name: it has no {_NAMESAKES[name]}"
    if name in _EXTENSIONS:
        failure = import_failure(name)
        if failure is not None:
            return f"cannot be imported ({failure})"
        if name == "mamba-ssm" and is_vims_fork():
            return "the fork that Vim ships (bimamba)"
    return ""


def _is_there(module: str) -> bool:
    """Whether a module can be found; of a dotted name, parents are imported for it."""
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:  # a parent package may fail with anything
        return False
