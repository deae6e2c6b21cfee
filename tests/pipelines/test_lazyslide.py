"""lazyslide: what it stores of a real slide's tiles, pooled and dense, against our own embeddings of the same tiles."""

import h5py
import lazyslide as zs
import lazyslide_models
import numpy as np
import pytest
import timm
import torch
from cosines import smallest_cosine
from support.exports import exported
from wsidata import open_wsi

import timm_mvhybrid.integrations.lazyslide
from timm_mvhybrid.cli import main
from timm_mvhybrid.evaluate import export_embeddings
from timm_mvhybrid.models import MODEL_NAMES

MODEL = "mvhybrid_small_patch16_256"
COSINE = 0.999


@pytest.fixture(scope="module", autouse=True)
def registered():
    timm_mvhybrid.integrations.lazyslide.register()


@pytest.fixture(scope="module")
def stored(example, hub, slide, tmp_path_factory):
    """The slide as the example leaves it on disk, pooled and dense features of published weights."""
    hub(MODEL)
    output = tmp_path_factory.mktemp("lazyslide") / "slide.zarr"
    example("lazyslide_features.py", slide, output, "--model", MODEL, "--pretrained", "--dense")
    return open_wsi(slide, store=output)


@pytest.fixture(scope="module")
def stored_tiles(stored, crops):
    """The tiles that lazyslide chose, cut out of the slide by us: it asked for 0.5 µm/px, and takes 0.499 for it."""
    bounds = stored.shapes["tiles"].bounds
    assert len(bounds) > 10
    assert np.ptp(bounds.maxx - bounds.minx) == 0
    assert bounds.maxx[0] - bounds.minx[0] == 256
    return crops([(int(x), int(y)) for x, y in bounds[["minx", "miny"]].to_numpy()])


@pytest.fixture
def few_tiles(slide, tmp_path):
    """The slide with a handful of tiles of 512 px, which lazyslide resizes to the model's size."""
    wsi = open_wsi(slide, store=tmp_path / "few.zarr")
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, 512, mpp=0.5)
    return wsi


def corners(wsi):
    return [(int(x), int(y)) for x, y in wsi.shapes["tiles"].bounds[["minx", "miny"]].to_numpy()]


def features(wsi, name, **options):
    return zs.tl.feature_extraction(wsi, name, return_features=True, device="cpu", pbar=False, **options)


def test_stored_features_are_ours(stored, stored_tiles, own_features, record):
    _, ours = own_features(MODEL, stored_tiles)
    theirs = stored.tables[f"{MODEL}_tiles"].X
    cosine = smallest_cosine(ours, theirs)
    record("tiles of 256 px", cosine=cosine, tiles=len(ours))
    assert cosine >= COSINE


def test_stored_dense_features_are_our_patch_tokens(stored, stored_tiles, hub, slide_image, record):
    theirs = stored.tables[f"{MODEL}_tiles_dense"].X
    squares = stored.shapes["tiles_dense"].bounds
    model = hub(MODEL)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    ours = []
    for x, y in corners(stored):
        pixels = np.asarray(slide_image.crop((x, y, x + 256, y + 256)))
        image = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            ours.append(model.forward_features(image[None])[0, 1:].numpy())
    cosine = smallest_cosine(np.concatenate(ours), theirs)
    record("dense", cosine=cosine, squares=len(theirs))
    assert cosine >= COSINE
    # row by row within a tile: lazyslide's square 17 is one down and one right of the tile's corner
    x, y = corners(stored)[0]
    assert squares.iloc[17].tolist() == [x + 16, y + 16, x + 32, y + 32]


def test_class_token_and_mean_of_patches(few_tiles, hub):
    hub("test_mvhybrid")
    both, dense = features(few_tiles, "test_mvhybrid", dense=True, pool_mode="cls_patch_mean")
    alone = features(few_tiles, "test_mvhybrid")
    tiles = len(alone)
    np.testing.assert_allclose(both[:, :64], alone, atol=1e-5)
    np.testing.assert_allclose(both[:, 64:], dense.reshape(tiles, 64, 64).mean(1), atol=1e-5)


def test_plain_names_need_our_import_alone(few_tiles, hub, own_features, crops, record):
    # lazyslide resizes tensors, our own transform pictures: both bicubic with antialiasing, apart by rounding to uint8
    name = "test_mvhybrid"
    assert name not in lazyslide_models.MODEL_REGISTRY
    _, ours = own_features(name, crops(corners(few_tiles), side=513))
    theirs = features(few_tiles, name)
    cosine = smallest_cosine(ours, theirs)
    record("tiles of 512 px by plain name", cosine=cosine)
    assert cosine >= COSINE


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_backbone_is_listed_and_dense(name, few_tiles):
    card = lazyslide_models.MODEL_REGISTRY[name]
    assert name in set(lazyslide_models.list_models())
    assert card.encode_dim == 384
    pooled, dense = features(few_tiles, name, dense=True, load_kws={"pretrained": False})
    assert pooled.shape == (len(few_tiles.shapes["tiles"]), card.encode_dim)
    assert dense.shape == (256 * len(pooled), card.encode_dim)
    assert np.isfinite(dense).all()


def test_image_size_is_that_of_the_tiles(few_tiles, hub, own_features, crops):
    model = hub(MODEL)
    sizes = []
    card = lazyslide_models.MODEL_REGISTRY[MODEL](pretrained=False, img_size=128)
    card.model.load_state_dict(model.state_dict())
    card.model.patch_embed.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    pooled, dense = features(few_tiles, card, dense=True)
    assert set(sizes) == {(128, 128)}
    assert len(dense) == 64 * len(pooled)
    _, ours = own_features(MODEL, crops(corners(few_tiles), side=513), input_size=128)
    assert smallest_cosine(ours, pooled) >= COSINE


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_model_path_is_loaded(kind, few_tiles, hub, tmp_path):
    published = hub(MODEL)
    folder, expected = exported(tmp_path, MODEL, seed=7)
    path = folder if kind == "folder" else folder / "model.safetensors"
    card = lazyslide_models.MODEL_REGISTRY[MODEL](model_path=path)
    assert all(map(torch.equal, card.model.state_dict().values(), expected.state_dict().values()))
    assert not torch.equal(card.model.cls_token, published.cls_token)
    theirs = features(few_tiles, MODEL, model_path=path)
    assert f"{MODEL}_tiles" in few_tiles.tables
    np.testing.assert_allclose(theirs, features(few_tiles, card), atol=1e-5)


def test_weights_of_another_backbone_are_refused(few_tiles, tmp_path):
    folder, _ = exported(tmp_path, "vit12_small_patch16_256")
    with pytest.raises(ValueError, match=r"holds the backbone 'vit12_small_patch16_256'"):
        features(few_tiles, MODEL, model_path=folder)
    with pytest.raises(RuntimeError, match=r"vit12"):
        features(few_tiles, MODEL, model_path=folder / "model.safetensors")


def test_mixed_precision_stores_float32(few_tiles, hub, record):
    hub(MODEL)
    plain = features(few_tiles, MODEL)
    mixed = features(few_tiles, MODEL, amp=True, autocast_dtype=torch.bfloat16)
    assert mixed.dtype == np.float32
    assert not np.array_equal(mixed, plain)
    cosine = smallest_cosine(plain, mixed)
    record("bfloat16 autocast", cosine=cosine)
    assert cosine >= COSINE


def test_unpublished_weights_fail_at_once_and_clearly(few_tiles):
    with pytest.raises(Exception, match=r"nothing is published at") as caught:
        features(few_tiles, "hydra_einfft_small_patch16_256")
    assert "hydra_einfft_small_patch16_256" in str(caught.value)


def test_timm_knows_the_models():
    assert set(MODEL_NAMES) <= set(timm.list_models())


def test_an_exported_slide_is_a_store_of_lazyslides(slide, slide_image, tmp_path):
    h5 = tmp_path / "slide.h5"
    assert (
        main(["embed", str(slide), "--model", "test_mvhybrid", "--output", str(h5), "--device", "cpu"]) == 0
    )
    wsi = open_wsi(slide, store=export_embeddings(h5, "zarr"))
    theirs = wsi.fetch.features_anndata("test_mvhybrid", "tiles")
    with h5py.File(h5) as stored:
        np.testing.assert_array_equal(theirs.X, stored["embeddings"][:])
        np.testing.assert_array_equal(theirs.obsm["spatial"], stored["coords"][:])
    first = next(iter(wsi.iter.tile_images("tiles")))
    square = (first.x, first.y, first.x + 256, first.y + 256)
    np.testing.assert_array_equal(first.image, np.asarray(slide_image.crop(square)))
    zs.tl.feature_aggregation(wsi, "test_mvhybrid", encoder="mean")
    means = wsi.tables["test_mvhybrid_tiles"].varm["agg_slide"]
    # float32 sums of a few dozen numbers
    np.testing.assert_allclose(np.ravel(means), theirs.X.mean(0), rtol=1e-5, atol=1e-6)
