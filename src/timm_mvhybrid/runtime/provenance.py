"""Files, options and packages → what is needed to get the same numbers again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from ..version import __version__
from .codec import encode

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "lightly",
    "numpy",
    "scipy",
    "scikit-learn",
    "scanpy",
    "anndata",
    "scikit-survival",
    "h5py",
    "triton",
    "mamba-ssm",
    "causal-conv1d",
)
"""Packages that numbers may depend on."""


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

    @property
    def data_digest(self) -> str:
        """One short hash of all input files, 12 hexadecimal digits."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.data.items()))
        return hashlib.sha256(lines.encode()).hexdigest()[:12]


def installed_version(package: str) -> str | None:
    """Returns the version of a package by its name for pip, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Looks up the versions of this package and of those that are installed."""
    found = {package: installed_version(package) for package in packages}
    return {
        "timm-mvhybrid": __version__,
        **{package: version for package, version in found.items() if version is not None},
    }


def collect_provenance(
    *, seed: int, options: Any, data: Mapping[str, str], generated: bool = False
) -> Provenance:
    """Collects where numbers come from: resolved options, paths cut to their names, and data, file → SHA-256."""
    return Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seed=seed,
        # where the data lie is this machine's business; their hashes say what they are
        options=encode(options, path=lambda path: path.name),
        versions={**installed_versions(), "python": platform.python_version()},
        data=dict(data),
        generated=generated,
        platform=f"{platform.system()} {platform.machine()}",
    )
