"""Folders of small generated slides, and what a cohort's folder must hold of them."""

import hashlib
from pathlib import Path

import h5py
import numpy as np
from support.generated_slides import write_slide

TILING = {"patch_size_px": 64}
"""Of the options: eight by four tiles of a slide's tissue at most."""


def write_slides(folder: Path, names="abcd") -> Path:
    """Slides that differ in their tissue: 32, 24, 16 and 6 tiles of 64 px."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = {"a": (768, 512), "b": (640, 512), "c": (512, 512), "d": (448, 384)}
    for name in names:
        write_slide(folder / f"{name}.tif", tissue=(256, 256, *ends[name]))
    return folder


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each slide's file."""
    return {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.h5"))}


def content(file: Path) -> dict:
    """Datasets and attributes of a slide's file, without what only cohorts have."""
    with h5py.File(file) as found:
        attributes = {name: value for name, value in found.attrs.items() if name != "made_of"}
        return {name: found[name][()] for name in found} | {"attributes": attributes}


def assert_same(one: Path, other: Path):
    """Two files hold the same, to the bit."""
    a, b = content(one), content(other)
    assert a.keys() == b.keys()
    for name in a.keys() - {"attributes"}:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == b[name].dtype
    assert a["attributes"].keys() == b["attributes"].keys()
    for name, value in a["attributes"].items():
        np.testing.assert_array_equal(value, b["attributes"][name])
