import hashlib
import os
import stat

import h5py
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from support.generated_patches import random_patches, write_hest, write_images
from support.generated_slides import write_slide

from timm_mvhybrid.data import FolderSource, PatchH5Source, SlideSource, TilingOptions, open_source
from timm_mvhybrid.embed import half_types
from timm_mvhybrid.evaluate import Backbone, BatchReport, embed, load_backbone
from timm_mvhybrid.version import __version__


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("test_mvhybrid")


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return random_patches(7, 64)


@pytest.fixture
def hest(tmp_path, patches) -> PatchH5Source:
    write_hest(tmp_path / "hest.h5", patches)
    return PatchH5Source(tmp_path / "hest.h5")


def read(path) -> dict:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file} | {"attributes": dict(file.attrs)}


def by_hand(model, patches: np.ndarray) -> np.ndarray:
    config = model.pretrained_cfg
    images = torch.from_numpy(patches).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return model((images - mean) / std).numpy()


def test_embeddings_are_the_models_own_on_normalised_pixels(tmp_path, hest, backbone, patches):
    summary = embed(hest, backbone, tmp_path / "out.h5", batch_size=3, device="cpu")
    result = read(tmp_path / "out.h5")
    assert result["embeddings"].dtype == np.float32
    np.testing.assert_allclose(result["embeddings"], by_hand(backbone.model, patches), rtol=1e-4, atol=1e-5)
    assert np.ptp(result["embeddings"], axis=0).min() > 0
    np.testing.assert_array_equal(result["coords"], hest.coords)
    assert result["coords"].dtype == np.int64
    assert result["barcodes"].shape == (7, 1)
    assert [name.decode() for name in result["barcodes"][:, 0]] == hest.barcodes
    assert "paths" not in result
    assert (summary.num_patches, summary.embedding_dim, summary.num_corrupt) == (7, 64, 0)
    assert summary.input_size_px == (64, 64)
    assert 0 <= summary.data_wait_share <= 1
    assert summary.patches_per_second == pytest.approx(7 / summary.seconds)


def test_attributes(tmp_path, hest, backbone):
    embed(hest, backbone, tmp_path / "out.h5", device="cpu")
    attributes = read(tmp_path / "out.h5")["attributes"]
    config = backbone.model.pretrained_cfg
    np.testing.assert_allclose(attributes.pop("mean"), config["mean"])
    np.testing.assert_allclose(attributes.pop("std"), config["std"])
    assert attributes == {
        "model": "test_mvhybrid",
        "weights": "random",
        "weights_sha256": "random",
        "resolution_um_per_px": 0.5,
        "patch_size_px": 64,
        "patch_size_level0": 128,
        "input_size_px": 64,
        "global_pool": "model (token)",
        "dtype": "float32",
        "timm_mvhybrid_version": __version__,
        "timm_version": timm.__version__,
        "torch_version": str(torch.__version__),
        "source": "hest.h5",
        "num_corrupt": 0,
    }


def test_folder_keeps_paths_and_takes_the_models_size(tmp_path, backbone):
    paths = write_images(tmp_path / "images", 4)
    embed(FolderSource(tmp_path / "images"), backbone, tmp_path / "out.h5", device="cpu")
    result = read(tmp_path / "out.h5")
    assert [path.decode() for path in result["paths"]] == paths
    assert "coords" not in result
    assert "barcodes" not in result
    assert result["attributes"]["input_size_px"] == 128
    assert not {"patch_size_px", "resolution_um_per_px"} & result["attributes"].keys()
    # 96 × 80 px: the shorter side becomes 128, then the centre is cut out
    with Image.open(tmp_path / "images" / "b" / "01.png") as image:
        resized = image.resize((154, 128), Image.Resampling.BICUBIC).crop((13, 0, 141, 128))
    expected = by_hand(backbone.model, np.array(resized)[None])
    np.testing.assert_allclose(result["embeddings"][2:3], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_mambaout"])
def test_any_timm_model(tmp_path, hest, patches, name):
    backbone = load_backbone(name)
    summary = embed(hest, backbone, tmp_path / "out.h5", device="cpu")
    assert summary.input_size_px == (64, 64)
    expected = by_hand(backbone.model, patches)
    np.testing.assert_allclose(read(tmp_path / "out.h5")["embeddings"], expected, rtol=1e-4, atol=1e-5)


def test_a_model_of_fixed_size_gets_resized_patches(tmp_path, hest, patches):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    backbone = Backbone(model=model, name="vit_tiny_patch16_224")
    summary = embed(hest, backbone, tmp_path / "out.h5", device="cpu")
    assert summary.input_size_px == (224, 224)
    resized = [np.asarray(Image.fromarray(p).resize((224, 224), Image.Resampling.BICUBIC)) for p in patches]
    expected = by_hand(backbone.model, np.stack(resized))
    np.testing.assert_allclose(read(tmp_path / "out.h5")["embeddings"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["slide", "hest", "images"])
def test_workers_change_nothing(tmp_path, hest, backbone, kind):
    source = hest
    if kind == "slide":
        write_slide(tmp_path / "slide.tif")
        source = SlideSource(tmp_path / "slide.tif", TilingOptions(patch_size_px=128))
    elif kind == "images":
        write_images(tmp_path / "images", 5)
        source = FolderSource(tmp_path / "images")
    for num_workers in (0, 2):
        embed(
            source,
            backbone,
            tmp_path / f"{num_workers}.h5",
            batch_size=2,
            device="cpu",
            num_workers=num_workers,
        )
    alone, shared = read(tmp_path / "0.h5"), read(tmp_path / "2.h5")
    assert alone.keys() == shared.keys()
    assert alone.pop("attributes").keys() == shared.pop("attributes").keys()
    for name, values in alone.items():
        np.testing.assert_array_equal(values, shared[name])


def test_bfloat16_is_close_to_float32(tmp_path, hest, backbone):
    embed(hest, backbone, tmp_path / "full.h5", device="cpu")
    embed(hest, backbone, tmp_path / "half.h5", device="cpu", dtype="bfloat16")
    full, half = read(tmp_path / "full.h5"), read(tmp_path / "half.h5")
    assert half["embeddings"].dtype == np.float32
    assert half["attributes"]["dtype"] == "bfloat16"
    error = np.linalg.norm(half["embeddings"] - full["embeddings"]) / np.linalg.norm(full["embeddings"])
    assert 0 < error < 0.03


class Turned(torch.nn.Module):
    """Gives two numbers an image, of which autocast turns one by an angle."""

    num_features = 2

    def __init__(self, tangent):
        super().__init__()
        self.tangent = tangent
        self.pretrained_cfg = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward_features(self, x):
        one = torch.ones(len(x))
        return torch.stack([one, one * (self.tangent if torch.is_autocast_enabled("cpu") else 0)], dim=1)

    def forward_head(self, x, pre_logits):
        return x


# cos(arctan(t)) is 0.9999 at t = 0.01414
@pytest.mark.parametrize(("tangent", "dtype", "word"), [
    (0.0141, "bfloat16", "at least 0.9999"),
    (0.0142, "float32", "not at least 0.9999"),
    (torch.nan, "float32", "cosine of bfloat16 with float32 in the first batch nan"),
])  # fmt: skip
def test_auto_takes_bfloat16_where_the_first_batch_agrees(tmp_path, hest, monkeypatch, tangent, dtype, word):
    monkeypatch.setattr(half_types, "multiplies_bfloat16_fast", lambda device: True)
    backbone = Backbone(model=Turned(tangent), name="turned")
    summary = embed(hest, backbone, tmp_path / "out.h5", device="cpu", dtype="auto", batch_size=3)
    found = read(tmp_path / "out.h5")
    assert summary.dtype == found["attributes"]["dtype"] == dtype
    assert word in summary.dtype_reason
    assert found["attributes"]["dtype_reason"] == summary.dtype_reason
    # also of the batch that it was tried on
    assert (found["embeddings"][:, 1] == np.float32(tangent if dtype == "bfloat16" else 0)).all()


def test_auto_stays_with_float32_where_bfloat16_is_slow(tmp_path, hest, backbone, monkeypatch):
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    for name in names:
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    summary = embed(hest, backbone, tmp_path / "auto.h5", device="cpu", dtype="auto")
    assert summary.dtype == "float32"
    assert "no fast products of bfloat16" in summary.dtype_reason
    embed(hest, backbone, tmp_path / "full.h5", device="cpu")
    np.testing.assert_array_equal(
        read(tmp_path / "auto.h5")["embeddings"], read(tmp_path / "full.h5")["embeddings"]
    )
    for name in names:
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
        assert half_types.multiplies_bfloat16_fast(torch.device("cpu"))
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    for name in names:
        monkeypatch.delattr(torch.cpu, name)
    # a torch that cannot say
    assert not half_types.multiplies_bfloat16_fast(torch.device("cpu"))
    assert not half_types.multiplies_bfloat16_fast(torch.device("mps"))


def test_seed_decides_random_weights(tmp_path, hest):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        embed(hest, load_backbone("test_mvhybrid", seed=seed), tmp_path / name, device="cpu")
    first, again, other = (read(tmp_path / name)["embeddings"] for name in "abc")
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_checkpoint_is_recorded(tmp_path, hest):
    trained = load_backbone("test_mvhybrid", seed=3)
    save_file(trained.model.state_dict(), tmp_path / "trained.safetensors")
    loaded = load_backbone("test_mvhybrid", checkpoint=tmp_path / "trained.safetensors")
    embed(hest, trained, tmp_path / "a.h5", device="cpu")
    embed(hest, loaded, tmp_path / "b.h5", device="cpu")
    expected, result = read(tmp_path / "a.h5"), read(tmp_path / "b.h5")
    np.testing.assert_array_equal(result["embeddings"], expected["embeddings"])
    assert result["attributes"]["weights"] == "trained.safetensors"
    digest = hashlib.sha256((tmp_path / "trained.safetensors").read_bytes()).hexdigest()
    assert result["attributes"]["weights_sha256"] == digest


def test_reports_after_every_batch(tmp_path, hest, backbone):
    reports: list[BatchReport] = []
    embed(hest, backbone, tmp_path / "out.h5", batch_size=3, device="cpu", on_batch=reports.append)
    assert [report.num_done for report in reports] == [3, 6, 7]
    assert {report.num_total for report in reports} == {7}
    assert all(0 <= report.data_wait_seconds <= report.seconds for report in reports)


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_mode_follows_the_umask(tmp_path, hest, backbone):
    before = os.umask(0o022)
    try:
        embed(hest, backbone, tmp_path / "out.h5", device="cpu")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.h5").stat().st_mode) == 0o644


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu(tmp_path, hest, backbone):
    embed(open_source(hest.path), backbone, tmp_path / "cpu.h5", device="cpu")
    embed(open_source(hest.path), backbone, tmp_path / "cuda.h5", device="cuda", num_workers=1)
    expected = read(tmp_path / "cpu.h5")["embeddings"]
    np.testing.assert_allclose(read(tmp_path / "cuda.h5")["embeddings"], expected, rtol=1e-2, atol=1e-3)
