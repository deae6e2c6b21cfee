"""A cohort at a glance: task folder → one picture, with one row for each of up to four studies."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_ROWS = 4
_PATCHES = 4
_SIDE = 224
_GAP = 6
_TITLE = 26


def draw_montage(task: Path) -> Image.Image:
    """Draws slides beside patches of up to four studies.

    Args:
        task: The task's folder with ``wsis/`` and ``patches/``.

    Returns:
        The picture, RGB, titled as generated.
    """
    first_of_study: dict[str, Path] = {}
    for path in sorted((task / "wsis").glob("*.tif")):
        first_of_study.setdefault(path.stem.rsplit("-", 1)[0], path)
    slides = list(first_of_study.items())[:_ROWS]
    wide = round(_SIDE * 1.3)
    size = (
        _GAP + wide + _PATCHES * (_SIDE + _GAP) + _GAP,
        _TITLE + len(slides) * (_SIDE + _GAP),
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    draw.text(
        (_GAP, 5), "GENERATED tissue, one study a row: its slide, and patches of 0.112 mm", "black", font
    )
    for row, (study, path) in enumerate(slides):
        top = _TITLE + row * (_SIDE + _GAP)
        with Image.open(path) as slide:
            overview = slide.convert("RGB")
        overview.thumbnail((wide, _SIDE), Image.Resampling.LANCZOS)
        canvas.paste(overview, (_GAP, top))
        draw.text((_GAP + 4, top + 4), study, "black", font)
        for column, patch in enumerate(_varied_patches(task / "patches" / f"{path.stem}.h5")):
            canvas.paste(Image.fromarray(patch), (_GAP + wide + _GAP + column * (_SIDE + _GAP), top))
    return canvas


def _varied_patches(path: Path) -> list[np.ndarray]:
    """Chooses patches that differ: each is the farthest from those already chosen, by colour and contrast."""
    with h5py.File(path, "r") as file:
        images = file["img"][()]
    look = np.concatenate([images.mean((1, 2)), images.std((1, 2))], axis=1)
    # the first is a typical one, so that the extremes stay a minority
    chosen = [int(((look - np.median(look, 0)) ** 2).sum(1).argmin())]
    while len(chosen) < min(_PATCHES, len(images)):
        distance = ((look[:, None] - look[chosen]) ** 2).sum(2).min(1)
        chosen.append(int(distance.argmax()))
    return [images[index] for index in chosen]
