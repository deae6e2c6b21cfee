"""Which cells the tissue holds: tissue → nuclei with their kind, rounded shape, stain and detail."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .tissue import EPITHELIUM, FAT, NECROSIS, STROMA, Tissue, jittered_grid

_PIXELS_AT_ONCE = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """Ellipses with wavy outlines, in pixels; later ones cover earlier ones.

    Attributes:
        x: Centres, (N,).
        y: Centres, (N,).
        major: Semi-axes along ``angle``, (N,).
        minor: Semi-axes across it, (N,).
        angle: Direction in radians, (N,).
        wave2: Complex amplitude of the outline's second harmonic relative to its radius, (N,).
        wave3: The same of the third, (N,).
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    major: NDArray[np.float32]
    minor: NDArray[np.float32]
    angle: NDArray[np.float32]
    wave2: NDArray[np.complex64]
    wave3: NDArray[np.complex64]

    def __len__(self) -> int:
        """Returns the number of shapes."""
        return len(self.x)

    @classmethod
    def make(
        cls,
        x: NDArray[np.floating],
        y: NDArray[np.floating],
        major: NDArray[np.floating],
        minor: NDArray[np.floating],
        angle: NDArray[np.floating],
        waviness: float,
        generator: np.random.Generator,
    ) -> Blobs:
        """Draws outlines for given ellipses; they deviate from these by about ``waviness`` of the radius."""
        waves = generator.standard_normal((2, 2, len(x))) * waviness / 2
        waves = np.clip(waves, -waviness, waviness)
        return cls(
            x=x.astype(np.float32),
            y=y.astype(np.float32),
            major=major.astype(np.float32),
            minor=minor.astype(np.float32),
            angle=angle.astype(np.float32),
            wave2=(waves[0, 0] + 1j * waves[0, 1]).astype(np.complex64),
            wave3=(waves[1, 0] + 1j * waves[1, 1]).astype(np.complex64),
        )

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> Blobs:
        """Selects shapes."""
        return Blobs(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Cover:
    """The pixels that shapes cover, each once.

    Attributes:
        pixel: Index into the flattened image, (P,) int64.
        owner: The shape on top there, (P,) int64.
        level: 0 at the shape's centre, 1 at its outline, (P,) float32.
        alpha: Fraction of the pixel within the outline, 0 to 1, (P,) float32.
    """

    pixel: NDArray[np.int64]
    owner: NDArray[np.int64]
    level: NDArray[np.float32]
    alpha: NDArray[np.float32]


def rasterise(blobs: Blobs, shape: tuple[int, int]) -> Cover:
    """Finds the pixels that shapes cover in an image of a height and a width."""
    owner_map = np.full(shape[0] * shape[1], -1, dtype=np.int32)
    level_map = np.zeros(shape[0] * shape[1], dtype=np.float32)
    reach = np.ceil(1.3 * np.maximum(blobs.major, blobs.minor) + 1).astype(np.int64)
    # shapes of one stamp size are drawn together, the large ones first: small cells lie on top of them
    for size in np.unique(reach)[::-1]:
        members = np.flatnonzero(reach == size)
        at_once = max(_PIXELS_AT_ONCE // int(2 * size + 1) ** 2, 1)
        for start in range(0, len(members), at_once):
            _stamp(blobs, members[start : start + at_once], int(size), shape, owner_map, level_map)
    pixel = np.flatnonzero(owner_map >= 0)
    owner = owner_map[pixel].astype(np.int64)
    level = level_map[pixel]
    radius = np.sqrt(blobs.major * blobs.minor)
    alpha = np.clip((1 - level) * radius[owner] + 0.5, 0, 1)
    return Cover(pixel=pixel, owner=owner, level=level, alpha=alpha)


def _stamp(
    blobs: Blobs,
    members: NDArray[np.int64],
    size: int,
    shape: tuple[int, int],
    owner_map: NDArray[np.int32],
    level_map: NDArray[np.float32],
) -> None:
    some = blobs.take(members)
    offset = np.arange(-size, size + 1)
    column = np.round(some.x).astype(np.int64)[:, None] + offset
    row = np.round(some.y).astype(np.int64)[:, None] + offset
    dx = (column - some.x[:, None]).astype(np.float32)[:, None, :]
    dy = (row - some.y[:, None]).astype(np.float32)[:, :, None]
    cosine, sine = np.cos(some.angle)[:, None, None], np.sin(some.angle)[:, None, None]
    along = (cosine * dx + sine * dy) / some.major[:, None, None]
    across = (cosine * dy - sine * dx) / some.minor[:, None, None]
    radius = np.sqrt(along * along + across * across) + np.float32(1e-6)
    edge = 0.5 / np.sqrt(some.major * some.minor)
    which, down, right = np.nonzero(radius < 1.3 + edge[:, None, None])
    radius = radius[which, down, right]
    turn = (along[which, down, right] + 1j * across[which, down, right]) / radius
    square = turn * turn
    outline = 1 + (some.wave2[which] * square).real + (some.wave3[which] * square * turn).real
    level = radius / np.maximum(outline, 0.3)
    row_of, column_of = row[which, down], column[which, right]
    inside = (level < 1 + edge[which]) & (row_of >= 0) & (row_of < shape[0])
    inside &= (column_of >= 0) & (column_of < shape[1])
    pixel = row_of[inside] * shape[1] + column_of[inside]
    # of repeated indices the last one stays, in both maps alike
    owner_map[pixel] = members[which[inside]]
    level_map[pixel] = level[inside]


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
    """Computes 1 / (1 + exp(−x))."""
    squashed: NDArray[np.floating] = 1 / (1 + np.exp(-value))
    return squashed


def place_cells(tissue: Tissue, fibre_angle: NDArray[np.float32], generator: np.random.Generator) -> Cells:
    """Fills a tissue with cells; ``fibre_angle`` is the direction of the fibres in radians, (H / 2, W / 2)."""
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
