#!/usr/bin/env bash
# Pillow 12.3.0 (libtiff 4.7.1): a YCbCr TIFF that Pillow saved cannot be read back by Pillow.
#
# Expected: an image of the mode YCbCr, which Pillow's table of TIFF modes lists, is saved by `save("x.tif")` without
# options and opened again by the same version.
# Seen: saving succeeds; loading raises OSError("image file is truncated (0 bytes not processed)"), although nothing was
# cut. An RGB image of the same pixels is read back. Pillow 13.0.0 (libtiff 4.7.2) reads both.
# Hurt: whoever takes "truncated" for a damaged download. Convert to RGB before saving, or update Pillow.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" pillow==12.3.0
PYTHONPATH="$folder" "${PYTHON:-python3}" - "$folder/image.tif" <<'PYTHON'
import sys

import PIL
from PIL import Image

image = Image.new("RGB", (16, 16), (200, 30, 60))


def read_back(mode):
    image.convert(mode).save(sys.argv[1])
    try:
        Image.open(sys.argv[1]).load()
    except OSError as error:
        return str(error)
    return "read"


found = {mode: read_back(mode) for mode in ("RGB", "YCbCr")}
print(f"Pillow {PIL.__version__}: {found}")
if found["RGB"] != "read" or "truncated" not in found["YCbCr"]:
    sys.exit("CHANGED")
print("as seen: what was saved as YCbCr is called truncated")
PYTHON
