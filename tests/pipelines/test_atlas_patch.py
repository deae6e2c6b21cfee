"""AtlasPatch: its command, given coordinates or a mask of ours in place of SAM2's, against our own features.

SAM2, which finds its tissue, is neither on PyPI nor are its weights; all behind it runs as it does for users.
"""

import subprocess
import sys
import types
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, TILE_CORNERS, TILE_PX
from cosines import smallest_cosine

from timm_mvhybrid.integrations import atlas_patch as ours

MODEL = "mvhybrid_small_patch16_256"
NAMES = (MODEL, "hydra_einfft_small_patch16_256")


def arguments(slide, folder, names, *more):
    chosen = [
        "process",
        slide,
        "--output",
        folder,
        "--patch-size",
        TILE_PX,
        "--target-mag",
        20,
        "--device",
        "cpu",
    ]
    chosen += ["--feature-extractors", " ".join(names), "--feature-batch-size", 4, "--feature-num-workers", 0]
    return [str(one) for one in [*chosen, *more]]


def write_coordinates(slide, folder, size):
    """The file that AtlasPatch leaves between its two steps, by its own writer."""
    from atlas_patch.services.storage import H5PatchWriter

    path = folder / "patches" / f"{slide.stem}.h5"
    path.parent.mkdir(parents=True)
    writer = H5PatchWriter(
        chunk_rows=64,
        patch_size=TILE_PX,
        patch_size_level0=TILE_PX,
        level0_mag=20,
        target_mag=20,
        level0_wh=size,
        overlap=0,
        slide_stem=slide.stem,
        wsi_path=str(slide),
    )
    entries = [(x, y, TILE_PX, TILE_PX, 0, None) for x, y in TILE_CORNERS]
    assert writer.write_coords(path, entries, batch=64)[0] == len(TILE_CORNERS)
    return path


def compare(path, names, own_features, crops, slide_image, record, title, bound):
    with h5py.File(path) as file:
        coords = file["coords"][:]
        stored = {name: file["features"][name][:] for name in names}
    assert (coords[:, 2:] == (TILE_PX, TILE_PX, 0)).all()
    corners = coords[:, :2]
    # beyond the slide AtlasPatch fills in a colour of its own
    within = (corners + TILE_PX <= slide_image.size).all(axis=1)
    folder = crops(corners[within].tolist())
    for name, theirs in stored.items():
        cosine = smallest_cosine(own_features(name, folder)[1], theirs[within])
        record(f"{title}, {name}", cosine=cosine, tiles=int(within.sum()))
        assert cosine > bound


@pytest.mark.parametrize(("precision", "bound"), [("float32", 0.999999), ("bfloat16", 0.99)])
def test_the_command_on_coordinates(
    hub, own_features, crops, slide, slide_image, tmp_path, record, precision, bound
):
    for name in NAMES:
        hub(name)
    path = write_coordinates(slide, tmp_path, slide_image.size)
    command = Path(sys.executable).with_name("atlaspatch")
    more = ["--feature-plugin", ours.__file__, "--feature-precision", precision]
    result = subprocess.run(
        [command, *arguments(slide, tmp_path, NAMES, *more)], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    compare(path, NAMES, own_features, crops, slide_image, record, f"command, {precision}", bound)


def test_from_the_slide_alone(hub, own_features, crops, slide, slide_image, tmp_path, monkeypatch, record):
    hub(MODEL)
    stand_in = types.ModuleType("sam2.sam2_image_predictor")
    stand_in.SAM2ImagePredictor = object
    monkeypatch.setitem(sys.modules, "sam2", types.ModuleType("sam2"))
    monkeypatch.setitem(sys.modules, "sam2.sam2_image_predictor", stand_in)
    from atlas_patch.cli import cli
    from atlas_patch.services import segmentation
    from click.testing import CliRunner

    class DarkIsTissue:
        def __init__(self, config):
            self.config = config

        def predict_image(self, image, **_):
            return (np.asarray(image.convert("L")) < 200).astype(np.float32)

        def predict_batch(self, images, **_):
            return [self.predict_image(image) for image in images]

        def close(self):
            pass

    monkeypatch.setattr(segmentation, "_SAM2Predictor", DarkIsTissue)
    more = ["--feature-plugin", ours.__file__]
    result = CliRunner().invoke(cli, arguments(slide, tmp_path, [MODEL], *more), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    path = tmp_path / "patches" / f"{slide.stem}.h5"
    with h5py.File(path) as file:
        assert len(file["coords"]) > 20
    compare(path, [MODEL], own_features, crops, slide_image, record, "from the slide alone", 0.999999)


def test_the_example_and_weights_of_ones_own(hub, own_features, tiles, tmp_path, record):
    from atlas_patch.models.patch.custom import register_feature_extractors_from_module
    from atlas_patch.models.patch.registry import PatchFeatureExtractorRegistry
    from PIL import Image

    rows, expected = own_features(MODEL, tiles)
    images = [np.asarray(Image.open(tiles / name).convert("RGB")) for name in rows]
    device, dtype = torch.device("cpu"), torch.float32
    registry = PatchFeatureExtractorRegistry()
    plugin = ROOT / "examples" / "pipelines" / "atlas_patch_plugin.py"
    register_feature_extractors_from_module(plugin, registry, device=device, dtype=dtype)
    assert {"mvhybrid_random", *NAMES} <= set(registry.available())
    torch.save(hub(MODEL).state_dict(), tmp_path / "weights.pth")
    ours.register_model(registry, "mine", MODEL, device, dtype, checkpoint=tmp_path / "weights.pth")
    cosine = smallest_cosine(expected, registry.create("mine").extract_batch(images, batch_size=4))
    record("weights of one's own", cosine=cosine)
    assert cosine > 0.999999
    assert registry.create("mvhybrid_random").extract_batch(images).shape == (len(images), 384)
    with pytest.raises(ValueError, match="exclude each other"):
        ours.register_model(registry, "both", MODEL, device, dtype, pretrained=True, checkpoint="x")
    with pytest.raises(ValueError, match="already registered"):
        ours.register_model(registry, "mine", MODEL, device, dtype)
