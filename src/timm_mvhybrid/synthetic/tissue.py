"""Where tissue is: smooth fields → glands, stroma, fat, necrosis and glass, as a label of each pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .random_fields import Map, resize, smooth_field

GLASS, STROMA, EPITHELIUM, LUMEN, FAT, NECROSIS = range(6)
FIELDS = (
    "tumour",
    "glands",
    "lymphocytes",
    "fibrosis",
    "chromatin",
    "nucleoli",
    "mitoses",
    "fat",
    "necrosis",
)
"""What varies over a slide. Each is standard normal, with a mean of its own in each study and slide."""

_FIELD_STEP = 4
_FIELD_SCALE_UM = 150.0
_GLAND_PITCH_UM = 104.0


@dataclass(frozen=True, kw_only=True)
class Gland:
    """One crypt: an irregular ring of epithelium.

    Attributes:
        x: Centre in px.
        y: Centre in px.
        radius: Mean outer radius in px.
        waves: Complex amplitudes of the outline's harmonics, from the second on, relative to the radius.
        lumen: Inner radius as a fraction of the outer one.
        tumour: How malignant, 0 to 1.
    """

    x: float
    y: float
    radius: float
    waves: NDArray[np.complex128]
    lumen: float
    tumour: float

    def outline(self, turn: NDArray[np.complexfloating]) -> NDArray[np.floating]:
        """Computes the outer radius in given directions.

        Args:
            turn: Directions as complex numbers of modulus 1.

        Returns:
            The radius in px, of the same shape.
        """
        radius = np.ones(turn.shape, turn.real.dtype)
        power = turn
        for wave in self.waves:
            power = power * turn
            radius += (turn.dtype.type(wave) * power).real
        return np.maximum(radius, 0.35) * turn.real.dtype.type(self.radius)


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """A section before it is stained.

    Attributes:
        px_per_um: Pixels per µm.
        label: Kind of tissue, (H, W) uint8.
        gland_of: Index of the gland, −1 outside, (H, W) int16.
        depth: 1 at a gland's outline, falling to 0 at its centre, (H, W) float32; above 1 outside.
        glands: The glands.
        fields: The smooth fields by name, each on a grid of a quarter of the resolution.
    """

    px_per_um: float
    label: NDArray[np.uint8]
    gland_of: NDArray[np.int16]
    depth: Map
    glands: list[Gland]
    fields: dict[str, Map]

    def at(self, name: str, x: NDArray[np.floating], y: NDArray[np.floating]) -> Map:
        """Reads a field.

        Args:
            name: The field.
            x: Positions in px, (N,).
            y: Positions in px, (N,).

        Returns:
            Values, (N,) float32.
        """
        field = self.fields[name]
        row = np.clip((y / _FIELD_STEP).astype(int), 0, field.shape[0] - 1)
        column = np.clip((x / _FIELD_STEP).astype(int), 0, field.shape[1] - 1)
        values: Map = field[row, column]
        return values

    def label_at(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Reads the kind of tissue; outside the image it is glass.

        Args:
            x: Positions in px, (N,).
            y: Positions in px, (N,).

        Returns:
            Labels, (N,) uint8.
        """
        column, row = np.floor(x).astype(int), np.floor(y).astype(int)
        inside = (row >= 0) & (row < self.label.shape[0]) & (column >= 0) & (column < self.label.shape[1])
        labels = np.full(len(x), GLASS, np.uint8)
        labels[inside] = self.label[row[inside], column[inside]]
        return labels


def grow_tissue(
    shape: tuple[int, int],
    px_per_um: float,
    means: dict[str, float],
    generator: np.random.Generator,
) -> Tissue:
    """Lays out a section.

    Args:
        shape: Height and width in px.
        px_per_um: Pixels per µm.
        means: Mean of each field of ``FIELDS`` on this slide.
        generator: Source of randomness.
    """
    coarse = (math.ceil(shape[0] / _FIELD_STEP), math.ceil(shape[1] / _FIELD_STEP))
    scale = _FIELD_SCALE_UM * px_per_um / _FIELD_STEP
    fields = {name: means[name] + smooth_field(coarse, scale, generator) for name in FIELDS}
    fields["tumour"] = fields["tumour"] * np.float32(0.6) + _ramp(coarse, generator)
    wobble = smooth_field(coarse, 12 * px_per_um / _FIELD_STEP, generator)
    # the two kinds without glands remain islands: rare on average, and only where their fields are high
    fat: Map = fields["fat"] + np.float32(0.12) * wobble - np.float32(1.9)
    necrosis: Map = fields["necrosis"] + np.float32(0.12) * wobble - np.float32(1.9)
    necrosis[fat > 0] = -1
    label = np.full(shape, STROMA, np.uint8)
    label[resize(necrosis, shape) > 0] = NECROSIS
    label[resize(fat, shape) > 0] = FAT
    glands = _place_glands(shape, px_per_um, fields, (fat > 0) | (necrosis > 0), generator)
    gland_of, depth, lumen = _draw_glands(shape, glands, generator)
    label[gland_of >= 0] = EPITHELIUM
    label[lumen] = LUMEN
    label[_outside(shape, px_per_um, generator)] = GLASS
    return Tissue(
        px_per_um=px_per_um, label=label, gland_of=gland_of, depth=depth, glands=glands, fields=fields
    )


def _ramp(shape: tuple[int, int], generator: np.random.Generator) -> Map:
    angle = generator.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    ramp: Map = (x * math.cos(angle) + y * math.sin(angle)).astype(np.float32)
    return ramp


def _outside(shape: tuple[int, int], px_per_um: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    coarse = (math.ceil(shape[0] / _FIELD_STEP), math.ceil(shape[1] / _FIELD_STEP))
    y, x = np.mgrid[: coarse[0], : coarse[1]]
    step_um = _FIELD_STEP / px_per_um
    to_edge = np.minimum(np.minimum(x, coarse[1] - 1 - x), np.minimum(y, coarse[0] - 1 - y)) * step_um
    ragged = 12 + 5 * smooth_field(coarse, 60 / step_um, generator)
    ragged += 2 * smooth_field(coarse, 9 / step_um, generator)
    outside: NDArray[np.bool_] = resize((ragged - to_edge).astype(np.float32), shape) > 0
    return outside


def jittered_grid(
    shape: tuple[int, int], pitch_px: float, jitter: float, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scatters points at a distance from each other: a hexagonal grid, each point moved a little.

    Args:
        shape: Height and width in px.
        pitch_px: Distance of neighbours in px.
        jitter: Largest shift along each axis as a fraction of the pitch.
        generator: Source of randomness.

    Returns:
        Horizontal and vertical positions in px, some of them just outside the image.
    """
    rows = math.ceil(shape[0] / (pitch_px * math.sqrt(0.75))) + 1
    columns = math.ceil(shape[1] / pitch_px) + 1
    row, column = np.mgrid[:rows, :columns]
    x = (column + 0.5 * (row % 2)) * pitch_px
    y = row * (pitch_px * math.sqrt(0.75))
    shift = generator.uniform(-jitter, jitter, (2, *x.shape)) * pitch_px
    return (x + shift[0]).ravel(), (y + shift[1]).ravel()


def _place_glands(
    shape: tuple[int, int],
    px_per_um: float,
    fields: dict[str, Map],
    without: NDArray[np.bool_],
    generator: np.random.Generator,
) -> list[Gland]:
    xs, ys = jittered_grid(shape, _GLAND_PITCH_UM * px_per_um, 0.13, generator)
    glands = []
    for x, y in zip(xs, ys, strict=True):
        chance, size, shade = generator.uniform(), generator.standard_normal(), generator.standard_normal()
        waves = generator.standard_normal((5, 2)) @ np.array([1, 1j])
        row = min(max(int(y / _FIELD_STEP), 0), without.shape[0] - 1)
        column = min(max(int(x / _FIELD_STEP), 0), without.shape[1] - 1)
        density = float(fields["glands"][row, column])
        if without[row, column] or chance > 1 / (1 + math.exp(-1.9 * density - 0.9)):
            continue
        tumour = 1 / (1 + math.exp(-2.2 * float(fields["tumour"][row, column])))
        radius_um = max(39 + 4 * math.tanh(density) + (3 + 7 * tumour) * 0.7 * size, 22)
        # low harmonics stretch a crypt, higher ones fold a malignant one
        amplitude = (0.05 + 0.11 * tumour) / np.arange(2, 7) * 1.6
        epithelium_um = 19 + 3 * tumour + 2 * shade
        glands.append(
            Gland(
                x=x,
                y=y,
                radius=radius_um * px_per_um,
                waves=waves * amplitude,
                lumen=min(max(1 - epithelium_um / radius_um, 0.08), 0.6),
                tumour=tumour,
            )
        )
    return glands


def _draw_glands(
    shape: tuple[int, int], glands: list[Gland], generator: np.random.Generator
) -> tuple[NDArray[np.int16], Map, NDArray[np.bool_]]:
    gland_of = np.full(shape, -1, np.int16)
    depth = np.full(shape, 9, np.float32)
    lumen = np.zeros(shape, bool)
    for index, gland in enumerate(glands):
        inner = (generator.standard_normal((2, 2)) @ np.array([1, 1j]) * [0.1, 0.07]).astype(np.complex64)
        reach = math.ceil(gland.radius * 1.9)
        top, left = max(int(gland.y) - reach, 0), max(int(gland.x) - reach, 0)
        window = (slice(top, int(gland.y) + reach + 1), slice(left, int(gland.x) + reach + 1))
        height, width = gland_of[window].shape
        if not height or not width:
            continue
        dx = np.arange(left, left + width, dtype=np.float32) - np.float32(gland.x)
        dy = np.arange(top, top + height, dtype=np.float32) - np.float32(gland.y)
        offset = dx[None, :] + np.complex64(1j) * dy[:, None]
        distance = np.abs(offset) + np.float32(1e-6)
        turn = offset / distance
        level = distance / gland.outline(turn)
        nearer = level < np.minimum(depth[window], np.float32(1))
        # the lumen is a wavy copy of the outline
        edge = np.float32(gland.lumen) * (1 + ((inner[0] + inner[1] * turn) * turn * turn).real)
        depth[window][nearer] = level[nearer]
        gland_of[window][nearer] = index
        lumen[window][nearer] = (level < edge)[nearer]
    return gland_of, depth, lumen
