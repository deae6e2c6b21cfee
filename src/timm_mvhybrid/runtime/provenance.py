"""Files, options and packages → what is needed to get the same numbers again."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..version import __version__
from .codec import encode
from .digest import file_sha256

_PACKAGES = (
    "torch",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "scanpy",
    "anndata",
    "scikit-survival",
    "h5py",
)


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """A backbone, its weights and how it embedded.

    Args:
        label: Names it within the result, unique.
        name: Its timm name.
        weights: `random`, `pretrained` or the checkpoint's file name.
        weights_sha256: SHA-256 of the weights' file; of the tensors themselves where there is no file.
        embedding_dim: Length of an embedding.
        transform: Input size, normalisation, pooling, dtype: what the cache is keyed by beside the weights.
        num_patches: Patches embedded or taken from the cache.
        num_cached: Those taken from the cache.
        seconds: Time spent embedding, summed over files and ranks; 0 if all came from the cache.
        data_wait_share: Share of it spent waiting for patches; NaN if all came from the cache.
    """

    label: str
    name: str
    weights: str
    weights_sha256: str
    embedding_dim: int
    transform: dict[str, Any] = field(default_factory=dict)
    num_patches: int = 0
    num_cached: int = 0
    seconds: float = 0.0
    data_wait_share: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is needed to get the same numbers again.

    Args:
        created: UTC time, ISO 8601.
        seed: Seed of random folds, bootstrap and random weights.
        options: All options as resolved.
        versions: Package → version.
        data: File relative to the input's root → SHA-256.
        generated: Whether the data say of themselves that they were generated, not measured.
        platform: Operating system and processor.
    """

    created: str
    seed: int
    options: dict[str, Any]
    versions: dict[str, str]
    data: dict[str, str]
    generated: bool
    platform: str


def hash_files(root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Hashes input files.

    Args:
        root: What names are relative to, where a file lies below it.
        files: The files.

    Returns:
        Name → SHA-256 in hex, sorted by name.
    """
    names = {}
    for file in files:
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        names[name] = file_sha256(file)
    return dict(sorted(names.items()))


def collect_provenance(
    *, seed: int, options: Any, data: Mapping[str, str], generated: bool = False
) -> Provenance:
    """Collects where numbers come from.

    Args:
        seed: Seed of the run.
        options: All options as resolved; paths are cut to their names.
        data: File → SHA-256.
        generated: Whether the data say of themselves that they were generated.

    Returns:
        The provenance, with the versions of the packages installed.
    """
    versions = {"timm-mvhybrid": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seed=seed,
        # where the data lie is this machine's business; their hashes say what they are
        options=encode(options, path=lambda path: path.name),
        versions=versions,
        data=dict(data),
        generated=generated,
        platform=f"{platform.system()} {platform.machine()}",
    )
