"""HEST: our encoder on the data set class of HEST-Benchmark, run as its loop over the patches runs it.

The benchmark itself is only in a clone, and wants the Hub's data; the loop stands here in its place.
"""

import h5py
import numpy as np
import pytest
import torch
from cosines import smallest_cosine
from hestcore.datasets import H5HESTDataset

from timm_mvhybrid.data import open_source
from timm_mvhybrid.evaluate import embed, load_backbone
from timm_mvhybrid.integrations.hest import PATCH_SIZE_PX, encoder

NAME = "mvhybrid_small_patch16_256"
CORNERS = ((256, 256), (768, 512), (1280, 1024), (512, 1536), (1536, 2048))


@pytest.fixture(scope="module")
def patches(slide_image, tmp_path_factory):
    """A file of patches as HEST-Benchmark's are: 224 px, with coordinates and barcodes."""
    path = tmp_path_factory.mktemp("hest") / "patches.h5"
    side = PATCH_SIZE_PX
    with h5py.File(path, "w") as file:
        file["img"] = np.stack([np.asarray(slide_image.crop((x, y, x + side, y + side))) for x, y in CORNERS])
        file["coords"] = np.array(CORNERS)
        file["barcode"] = np.array([[f"spot{index}".encode()] for index in range(len(CORNERS))])
    return path


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_patches(hub, patches, tmp_path, precision, record):
    hub(NAME)
    model, transform, precision = encoder(NAME, precision=precision)
    stored = []
    dataset = H5HESTDataset(patches, img_transform=transform, chunk_size=2)
    for batch in torch.utils.data.DataLoader(dataset, batch_size=1):
        images = batch["imgs"].squeeze(0).float()
        with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
            stored.append(model(images).cpu().numpy())
    embed(open_source(patches), load_backbone(NAME, pretrained=True), tmp_path / "own.h5", batch_size=2)
    with h5py.File(tmp_path / "own.h5") as file:
        cosine = smallest_cosine(file["embeddings"][:], np.concatenate(stored))
    record(str(precision), cosine=cosine)
    assert cosine >= 0.999
