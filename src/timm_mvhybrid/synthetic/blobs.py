"""Rounded shapes: ellipses with wavy outlines → the pixels that they cover."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

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
        """Draws outlines for given ellipses.

        Args:
            x: Centres in px, (N,).
            y: Centres in px, (N,).
            major: Semi-axes in px, (N,).
            minor: Semi-axes in px, (N,).
            angle: Directions in radians, (N,).
            waviness: Typical deviation of an outline from its ellipse, relative to the radius.
            generator: Source of randomness.

        Returns:
            The shapes.
        """
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
        """Selects shapes.

        Returns:
            The shapes chosen.
        """
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
    """Finds the pixels that shapes cover.

    Args:
        blobs: The shapes.
        shape: Height and width of the image.
    """
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
