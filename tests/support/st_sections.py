"""Sections of Spatial Transcriptomics in the layout of HER2ST, whose colours encode the place of each spot."""

import gzip

import numpy as np
from PIL import Image

# spots 50 px apart: 4 µm a px
PLACES = [(x, y) for y in range(2, 5) for x in range(3, 6)]
GENES = ["G1", "G2", "G3"]


def pixel(x, y):
    return 30.0 + 50 * (x - 3), 40.0 + 50 * (y - 2)


def write_section(root, name="A1", places=PLACES, skip_counts=0):
    for folder in ("images", "counts", "spots"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.full((200, 180, 3), 250, np.uint8)
    for x, y in places:
        column, row = map(int, pixel(x, y))
        pixels[row - 10 : row + 11, column - 10 : column + 11] = 20 * x, 20 * y, 7
    Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    rows = [f"{x}x{y}\t{x}\t{y}\t0" for x, y in places[skip_counts:]] + ["99x99\t1\t1\t1"]
    table = "\t".join(["", *GENES]) + "\n" + "\n".join(reversed(rows)) + "\n"
    (root / "counts" / f"{name}.tsv.gz").write_bytes(gzip.compress(table.encode()))
    lines = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    lines += ["{}\t{}\t{}\t{}\t{}\t{}\t1".format(x, y, x, y, *pixel(x, y)) for x, y in places]
    lines.append("50\t50\t50\t50\t0\t0\t0")
    (root / "spots" / f"{name}_selection.tsv").write_text("\n".join(lines) + "\n")
    return root
