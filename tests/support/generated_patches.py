"""Patch files made for tests, laid out as HEST, CLAM and TRIDENT write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image


def random_patches(num_patches: int, size: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_patches, size, size, 3), dtype=np.uint8)


def write_hest(path: Path, patches: np.ndarray, barcodes: list[str] | None = None) -> list[str]:
    """`img`, `coords`, `barcode` (N, 1) with HEST's attributes of a slide of 0.25 µm/px read at 0.5 µm/px."""
    num_patches, size = patches.shape[:2]
    barcodes = [f"SPOT-{index:03d}-ä" for index in range(num_patches)] if barcodes is None else barcodes
    with h5py.File(path, "w") as file:
        images = file.create_dataset(
            "img", data=patches, chunks=(1, *patches.shape[1:]) if num_patches else None
        )
        images.attrs.update(
            {"patch_size_src": 2 * size, "patch_size_target": size, "downsample": 2.0, "pixel_size": 0.25}
        )
        file["coords"] = np.arange(2 * num_patches, dtype=np.int64).reshape(-1, 2) * 7
        names = np.array(barcodes, dtype=object)[:, None]
        file.create_dataset("barcode", data=names, dtype=h5py.string_dtype("utf-8"))
    return barcodes


def write_clam_patches(path: Path, patches: np.ndarray) -> None:
    """`imgs` and `coords` in pixels of level 1, as CLAM's older versions wrote them."""
    with h5py.File(path, "w") as file:
        images = file.create_dataset("imgs", data=patches)
        images.attrs.update(
            {
                "patch_level": 1,
                "wsi_name": "slide",
                "downsample": (4.0, 4.0),
                "level_dim": (1000, 800),
                "downsampled_level_dim": (500, 400),
            }
        )
        file["coords"] = np.arange(2 * len(patches), dtype=np.int32).reshape(-1, 2)


def write_coordinates(path: Path, coords: Any, *, attributes: dict[str, Any], on_file: bool = False) -> None:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("coords", data=np.asarray(coords))
        (file if on_file else dataset).attrs.update(attributes)


def clam_attributes(patch_size: int, patch_level: int) -> dict[str, Any]:
    """What CLAM 53e2409 writes, of a slide of 1024 × 768 px."""
    level_dim = (1024 >> patch_level, 768 >> patch_level)
    return {
        "patch_size": patch_size,
        "patch_level": patch_level,
        "downsample": (float(2**patch_level),) * 2,
        "downsampled_level_dim": level_dim,
        "level_dim": level_dim,
        "name": "slide",
        "save_path": "patches",
    }


def trident_attributes(patch_size: int, magnification: int = 40, target: int = 20) -> dict[str, Any]:
    """What TRIDENT a91fa84 writes, of a slide of 1024 × 768 px."""
    return {
        "patch_size": patch_size,
        "patch_size_level0": patch_size * magnification // target,
        "level0_magnification": magnification,
        "target_magnification": target,
        "overlap": 0,
        "name": "slide",
        "savetodir": "coords",
        "level0_width": 1024,
        "level0_height": 768,
    }


def write_images(folder: Path, num_images: int, size: tuple[int, int] = (96, 80)) -> list[str]:
    """Images named so that sorting matters, half of them in a subfolder; returns their sorted relative paths."""
    (folder / "b").mkdir(parents=True)
    paths = []
    for index in reversed(range(num_images)):
        path = f"b/{index:02d}.png" if index % 2 else f"{index:02d}.jpg"
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / path)
        paths.append(path)
    return sorted(paths)
