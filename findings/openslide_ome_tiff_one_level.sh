#!/usr/bin/env bash
# openslide-python 1.4.7, openslide-bin 4.0.1.2, tiffslide 3.0.1, tifffile 2026.3.3: of a pyramid of OME-TIFF, OpenSlide
# sees the largest level alone.
#
# Expected: OpenSlide opens the file and names no problem, so it has the file's three levels, as tiffslide has.
# Seen: one level. OME-TIFF keeps smaller levels in SubIFDs of the first page (tag 330), and OpenSlide looks at the pages of
# the file's own chain. It is no error: thumbnails and coarse patches are right, and are made of the whole largest level.
# Hurt: whoever opens OME-TIFF of bioformats2raw, QuPath or tifffile through OpenSlide first and wonders why it takes hours.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" \
  openslide-python==1.4.7 openslide-bin==4.0.1.2 tiffslide==3.0.1 tifffile==2026.3.3 imagecodecs==2026.3.6
cd "$folder"
PYTHONPATH="$folder" "${PYTHON:-python3}" - <<'PYTHON'
import sys

import numpy
import openslide
import tifffile
import tiffslide

image = numpy.random.default_rng(0).integers(0, 256, (1024, 2048, 3), dtype=numpy.uint8)
with tifffile.TiffWriter("slide.ome.tif", ome=True) as writer:
    kind = {"tile": (256, 256), "photometric": "rgb"}
    writer.write(image, subifds=2, metadata={"axes": "YXS"}, **kind)
    for by in (2, 4):
        writer.write(image[::by, ::by], subfiletype=1, **kind)
first, second = openslide.OpenSlide("slide.ome.tif"), tiffslide.TiffSlide("slide.ome.tif")
print(f"openslide {openslide.__version__} ({openslide.__library_version__}), tiffslide {tiffslide.__version__}")
print("expected: three levels through both")
print(f"seen: OpenSlide {first.level_count}, tiffslide {second.level_count}")
sys.exit(0 if first.level_count == 1 and second.level_count == 3 else 1)
PYTHON
