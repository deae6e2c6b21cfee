"""Which cells the tissue holds: tissue → nuclei with their kind, shape, stain and detail."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blobs import Blobs
from .tissue import EPITHELIUM, FAT, NECROSIS, STROMA, Tissue, jittered_grid

EPITHELIAL, FIBROBLAST, LYMPHOCYTE, MITOSIS, DEBRIS = range(5)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Nuclei, and the mucin drops of goblet cells.

    Attributes:
        kind: Kind of each nucleus, (N,) int8.
        outline: Where and how large.
        haematoxylin: Mean optical density of the nuclear stain, (N,).
        chromatin: Relative amplitude of the chromatin's grain, which leaves the mean as it is, (N,).
        nucleolus: Contrast of the nucleoli, which leaves the mean as it is, 0 for none, (N,).
        mucin: Drops of goblet cells.
    """

    kind: NDArray[np.int8]
    outline: Blobs
    haematoxylin: NDArray[np.float32]
    chromatin: NDArray[np.float32]
    nucleolus: NDArray[np.float32]
    mucin: Blobs


def sigmoid(value: NDArray[np.floating]) -> NDArray[np.floating]:
    """Computes 1 / (1 + exp(−x)).

    Args:
        value: Any shape.

    Returns:
        Between 0 and 1, of the same shape.
    """
    squashed: NDArray[np.floating] = 1 / (1 + np.exp(-value))
    return squashed


def place_cells(tissue: Tissue, fibre_angle: NDArray[np.float32], generator: np.random.Generator) -> Cells:
    """Fills a tissue with cells.

    Args:
        tissue: The tissue.
        fibre_angle: Direction of the fibres in radians, (H / 2, W / 2).
        generator: Source of randomness.
    """
    lining, mucin = _line_glands(tissue, generator)
    scattered = _scatter(tissue, fibre_angle, generator)
    x, y, major, minor, angle, kind = (
        np.concatenate([first, second]) for first, second in zip(scattered, lining, strict=True)
    )
    kind = kind.astype(np.int8)
    num = len(kind)
    mitosis = (kind == EPITHELIAL) & (
        generator.uniform(size=num) < 0.004 + 0.075 * sigmoid(2.2 * tissue.at("mitoses", x, y) - 1)
    )
    kind[mitosis] = MITOSIS
    # drawn for every cell, so that more mitoses change nothing else
    figures = generator.uniform([[3.6], [1.3], [0.0]], [[5.2], [2.2], [math.pi]], (3, num))
    major[mitosis], minor[mitosis], angle[mitosis] = figures[:, mitosis]
    scale = tissue.px_per_um
    outline = Blobs.make(x, y, major * scale, minor * scale, angle, 0.1, generator)
    outline.wave2[kind == MITOSIS] *= 1.8
    outline.wave3[kind == MITOSIS] *= 1.8
    outline.wave3[kind == LYMPHOCYTE] *= 0.4
    density = np.array([0.92, 1.05, 1.45, 1.95, 1.2])[kind] * (1 + 0.11 * generator.standard_normal(num))
    textured = np.array([1, 0.6, 0.35, 0.15, 0.3])[kind]
    chromatin = textured * (0.06 + 0.62 * sigmoid(1.8 * tissue.at("chromatin", x, y)))
    prominent = sigmoid(2.2 * tissue.at("nucleoli", x, y))
    nucleolus = np.where(
        (kind == EPITHELIAL) & (generator.uniform(size=num) < 0.08 + 0.85 * prominent),
        0.35 + 0.85 * prominent,
        0,
    )
    return Cells(
        kind=kind,
        outline=outline,
        haematoxylin=density.astype(np.float32),
        chromatin=chromatin.astype(np.float32),
        nucleolus=nucleolus.astype(np.float32),
        mucin=mucin,
    )


def _line_glands(
    tissue: Tissue, generator: np.random.Generator
) -> tuple[tuple[NDArray[np.floating], ...], Blobs]:
    """Sets nuclei along each gland's outer border, and drops of mucin between them and the lumen."""
    scale = tissue.px_per_um
    nuclei, drops = [], []
    for index, gland in enumerate(tissue.glands):
        radius_um = gland.radius / scale
        for layer in range(3):
            kept_fraction = (1.0, 0.15 + 0.75 * gland.tumour, 0.65 * gland.tumour - 0.2)[layer]
            inset_um = 5.6 + 6.0 * layer
            num = int(2 * math.pi * max(radius_um - inset_um, 4) / (5.4 + 1.2 * gland.tumour))
            turn_angle = (np.arange(num) + generator.uniform(-0.3, 0.3, num)) * (2 * math.pi / max(num, 1))
            turn_angle = turn_angle[generator.uniform(size=num) < kept_fraction]
            num = len(turn_angle)
            inset_px = (inset_um + (0.7 + 2.0 * gland.tumour) * generator.standard_normal(num)) * scale
            turn = np.exp(1j * turn_angle)
            place = (gland.outline(turn) - inset_px) * turn
            size = 1 + 0.3 * gland.tumour + (0.09 + 0.12 * gland.tumour) * generator.standard_normal(num)
            size = np.clip(size, 0.7, 1.9)
            tilt = (0.12 + 0.45 * gland.tumour) * generator.standard_normal(num)
            major = 4.5 * size * (1 - 0.12 * gland.tumour)
            minor = 2.55 * size * (1 + 0.28 * gland.tumour)
            owner = np.full(num, index)
            nuclei.append(
                (gland.x + place.real, gland.y + place.imag, major, minor, turn_angle + tilt, owner)
            )
        num = int(2 * math.pi * (radius_um - 13) / 9 * max(1 - 1.9 * gland.tumour, 0))
        turn_angle = generator.uniform(0, 2 * math.pi, num)
        turn = np.exp(1j * turn_angle)
        place = (gland.outline(turn) - generator.uniform(12.5, 15, num) * scale) * turn
        drops.append((gland.x + place.real, gland.y + place.imag, turn_angle, np.full(num, index)))
    x, y, major, minor, angle, owner = (
        (np.concatenate(values) for values in zip(*nuclei, strict=True)) if nuclei else np.zeros((6, 0))
    )
    kept = _within_gland(tissue, x, y, owner)
    kind = np.full(len(x), EPITHELIAL)
    lining = tuple(values[kept] for values in (x, y, major, minor, angle, kind))
    x, y, angle, owner = (
        (np.concatenate(values) for values in zip(*drops, strict=True)) if drops else np.zeros((4, 0))
    )
    kept = _within_gland(tissue, x, y, owner)
    num = int(kept.sum())
    sizes = generator.uniform(3.2, 4.6, num) * scale
    return lining, Blobs.make(x[kept], y[kept], 1.25 * sizes, sizes, angle[kept], 0.1, generator)


def _within_gland(
    tissue: Tissue, x: NDArray[np.floating], y: NDArray[np.floating], owner: NDArray[np.floating]
) -> NDArray[np.bool_]:
    height, width = tissue.label.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    column, row = np.where(inside, x, 0).astype(int), np.where(inside, y, 0).astype(int)
    mine = (tissue.gland_of[row, column] == owner) & (tissue.label[row, column] == EPITHELIUM)
    return inside & mine


def _scatter(
    tissue: Tissue, fibre_angle: NDArray[np.float32], generator: np.random.Generator
) -> tuple[NDArray[np.floating], ...]:
    """Scatters fibroblasts, lymphocytes and debris over what lies between the glands."""
    scale = tissue.px_per_um
    x, y = jittered_grid(tissue.label.shape, 8.2 * scale, 0.3, generator)
    label = tissue.label_at(x, y)
    chance = generator.uniform(size=len(x))
    lymphocytes = 0.02 + 0.88 * sigmoid(3.2 * (tissue.at("lymphocytes", x, y) - 1.1))
    kind = np.full(len(x), -1)
    kind[(label == STROMA) & (chance < lymphocytes + 0.085)] = FIBROBLAST
    kind[(label == STROMA) & (chance < lymphocytes)] = LYMPHOCYTE
    kind[(label == EPITHELIUM) & (chance < 0.012)] = LYMPHOCYTE
    kind[(label == FAT) & (chance < 0.004)] = FIBROBLAST
    kind[(label == NECROSIS) & (chance < 0.22)] = DEBRIS
    kept = kind >= 0
    x, y, kind = x[kept], y[kept], kind[kept]
    num = len(kind)
    column = np.clip((x / 2).astype(int), 0, fibre_angle.shape[1] - 1)
    row = np.clip((y / 2).astype(int), 0, fibre_angle.shape[0] - 1)
    along = fibre_angle[row, column] + 0.2 * generator.standard_normal(num)
    angle = np.where(kind == FIBROBLAST, along, generator.uniform(0, math.pi, num))
    # fibroblast nuclei are cut at any angle: long spindles and short ovals
    length = np.array([0, 6.2, 3.0, 0, 1.3])[kind] * np.clip(
        1 + np.array([0, 0.3, 0.08, 0, 0.5])[kind] * generator.standard_normal(num), 0.4, 1.6
    )
    ratio = np.array([1, 0.26, 0.9, 1, 0.75])[kind]
    width = np.where(kind == FIBROBLAST, np.maximum(ratio * length, 1.15), ratio * length)
    return x, y, length, width, angle, kind
