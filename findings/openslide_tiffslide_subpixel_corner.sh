#!/usr/bin/env bash
# openslide-python 1.4.3, openslide-bin 4.0.0.10, tiffslide 2.5.1, tifffile 2025.5.10: one file, one read_region, two
# pictures.
#
# Expected: tiffslide imitates OpenSlide, so the same call gives the same pixels, and a level's own pixels come unchanged.
# Seen: where a level is not an exact fraction of level 0 (1203 → 601 px), a level-0 corner lies between the level's
# pixels. OpenSlide interpolates there and blurs; tiffslide rounds down. Left of and above the slide OpenSlide does not
# interpolate but moves to the next whole pixel, so that the picture jumps by up to a pixel at the edge.
# Hurt: whoever computes features of one pyramid through both libraries, or expects whole pixels from OpenSlide.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" \
  openslide-python==1.4.3 openslide-bin==4.0.0.10 tiffslide==2.5.1 tifffile==2025.5.10 'zarr<3' numpy==2.2.6
cd "$folder"
PYTHONPATH="$folder" "${PYTHON:-python3}" - <<'PYTHON'
import sys

import numpy
import openslide
import tifffile
import tiffslide

draw = numpy.random.default_rng(0).integers
levels = [draw(0, 256, (907 // by, 1203 // by, 3), dtype=numpy.uint8) for by in (1, 2)]
with tifffile.TiffWriter("slide.tif") as writer:
    for number, level in enumerate(levels):
        writer.write(level, tile=(256, 256), photometric="rgb", subfiletype=int(number > 0), metadata=None)
slides = openslide.OpenSlide("slide.tif"), tiffslide.TiffSlide("slide.tif")


def read(slide, corner):
    return numpy.asarray(slide.read_region(corner, 1, (100, 100)).convert("RGB")).astype(float)


whole = levels[1][100:200, 100:200]
first, second = (read(slide, (201, 201)) for slide in slides)
inside = numpy.abs(first - second).mean()
floor = numpy.abs(second - whole).max()
edge = read(slides[0], (-51, -51))[25:, 25:]
jump = numpy.abs(edge - levels[1][:75, :75]).max()
print(f"openslide {openslide.__version__}, tiffslide {tiffslide.__version__}")
print(f"downsample {slides[0].level_downsamples[1]:.5f}: (201, 201) is {201 / slides[0].level_downsamples[1]:.3f}")
print("expected: the same pixels through both")
print(f"seen: {inside:.1f} grey levels apart on average; tiffslide's are those of the pixel below ({floor:.0f} apart);")
print(f"at (-51, -51), {-51 / slides[0].level_downsamples[1]:.3f}, OpenSlide's are whole pixels ({jump:.0f} apart)")
sys.exit(0 if inside > 10 and floor == 0 and jump == 0 else 1)
PYTHON
