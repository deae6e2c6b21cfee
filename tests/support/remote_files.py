"""A tar of patches and a store of OME-Zarr, small, for servers to send."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from support.generated_patches import random_patches

PATCHES = random_patches(6, size=24)
STORED = np.random.default_rng(0).integers(0, 256, (200, 320, 3), dtype=np.uint8)


def write_tar(path, patches=PATCHES, names="{}.png"):
    with tarfile.open(path, "w") as archive:
        for number, patch in enumerate(patches):
            stream = io.BytesIO()
            Image.fromarray(patch).save(stream, "PNG")
            member = tarfile.TarInfo(names.format(number))
            member.size = len(stream.getvalue())
            archive.addfile(member, io.BytesIO(stream.getvalue()))


def write_store(path, image=STORED, um_per_px=0.5):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    group = zarr.open_group(str(path), mode="w")
    create = group.create_array if hasattr(group, "create_array") else group.create_dataset
    create("0", data=np.ascontiguousarray(image.transpose(2, 0, 1)), chunks=(3, 64, 64))
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    scale = {"type": "scale", "scale": [1.0, um_per_px, um_per_px]}
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    group.attrs.update({"multiscales": [{"axes": axes, "datasets": datasets}]})
