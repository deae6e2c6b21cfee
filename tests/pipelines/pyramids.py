"""Slides made of a picture, as Aperio scanners write them."""

import math

import numpy as np
import tifffile
from PIL import Image

# how scanners come from an odd number of pixels to half of it
ROUNDINGS = {"down": math.floor, "up": math.ceil}


def write_pyramid(path, image, magnification, rounding=None):
    """Writes level 0 and its half, whose downsample is an exact 2 only where the picture's sides are even.

    Args:
        path: The slide, .svs.
        image: Level 0.
        magnification: What the slide says of it; 10 / magnification are its µm/px.
        rounding: A name of ``ROUNDINGS``; None writes level 0 alone.
    """
    description = f"Aperio Image Library v12\n|AppMag = {magnification}|MPP = {10 / magnification}"
    options = {"photometric": "rgb", "metadata": None, "description": description}
    with tifffile.TiffWriter(path) as writer:
        writer.write(np.asarray(image), tile=(256, 256), **options)
        # the second directory of an SVS is its thumbnail
        writer.write(np.asarray(image.resize((64, 64))), rowsperstrip=16, **options)
        if rounding is not None:
            size = tuple(ROUNDINGS[rounding](side / 2) for side in image.size)
            half = image.resize(size, Image.Resampling.BOX)
            writer.write(np.asarray(half), tile=(256, 256), **options)
