"""Sections of Spatial Transcriptomics made for tests, in the layout of the HER2ST data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
from PIL import Image

GENES = [f"G{index:02d}" for index in range(12)]


def write_section(root, name, seed):
    """Thirty spots, 50 px or 200 µm apart, whose genes follow the colour under them."""
    rng = np.random.default_rng(seed)
    places = [(x, y) for y in range(5) for x in range(6)]
    pixels = rng.integers(200, 255, (300, 350, 3), dtype=np.uint8)
    weights = np.random.default_rng(9).normal(size=(3, len(GENES))) / 40
    counts, spots = ["\t".join(["", *GENES])], ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    for x, y in places:
        column, row = 40 + 50 * x, 40 + 50 * y
        colour = rng.integers(60, 200, 3)
        pixels[row - 20 : row + 20, column - 20 : column + 20] = colour + rng.integers(-20, 20, (40, 40, 1))
        values = rng.poisson(np.exp(2 + (colour - 130) @ weights))
        counts.append("\t".join([f"{x}x{y}", *map(str, values)]))
        spots.append(f"{x}\t{y}\t{x}\t{y}\t{column}\t{row}\t1")
    for folder, file, content in (
        ("counts", f"{name}.tsv.gz", gzip.compress("\n".join(counts).encode())),
        ("spots", f"{name}_selection.tsv", "\n".join(spots).encode()),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / file).write_bytes(content)
    (root / "images").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(root / "images" / f"{name}.png")


def write_sections(root: Path, names: tuple[str, ...]) -> Path:
    """Sections whose patients are the first letters of their names."""
    for seed, name in enumerate(names):
        write_section(root, name, seed)
    (root / "sections.json").write_text(json.dumps({name: {"patient": name[0]} for name in names}))
    return root
