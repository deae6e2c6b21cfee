"""slide2vec: tiles of a slide, given images, dense grids and attention maps, against our own features."""

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from cosines import smallest_cosine

from timm_mvhybrid.integrations.slide2vec import register_checkpoint
from timm_mvhybrid.models import MODEL_NAMES

MODEL = "mvhybrid_small_patch16_256"
REGIONS = ((768, 512), (1152, 1536))
NUM_HEADS = 6


def execution(folder):
    from slide2vec import ExecutionOptions

    return ExecutionOptions(output_dir=folder, batch_size=4, num_workers_per_gpu=0, num_gpus=1)


def normalised(image, model):
    config = timm.data.resolve_data_config({}, model=model)
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255)
    return ((pixels - torch.tensor(config["mean"])) / torch.tensor(config["std"])).permute(2, 0, 1)


def region_batch(slide_image, model, side):
    images = [slide_image.crop((x, y, x + side, y + side)) for x, y in REGIONS]
    return torch.stack([normalised(image, model) for image in images])


def dense_features(name, slide, folder, side, **options):
    """What slide2vec stores for the regions, (regions, channels, rows, columns)."""
    from slide2vec import DenseOptions, Model, SlideRegions

    dense = DenseOptions(spacing_um=0.5, target_size=side, **options)
    regions = SlideRegions(sample_id="slide", image_path=slide, coordinates=np.array(REGIONS))
    artifacts = Model.from_preset(name, device="cpu").embed_regions_dense(
        [regions], dense=dense, execution=execution(folder)
    )
    found = {tuple(map(int, one.path.stem.split("_"))): torch.load(one.path) for one in artifacts}
    return torch.stack([found[corner] for corner in REGIONS])


def test_finds_all_six_without_an_import():
    program = (
        "import sys, slide2vec, json; before = 'timm_mvhybrid' in sys.modules; names = slide2vec.list_models('tile');"
        "skipped = [str(one) for one in slide2vec.list_encoder_provider_diagnostics() if 'timm_mv' in str(one)];"
        "print(json.dumps([before, names, skipped]))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    imported_before, names, skipped = json.loads(output.splitlines()[-1])
    assert not imported_before
    assert not skipped
    assert set(MODEL_NAMES) <= set(names)


@pytest.mark.parametrize("variant", ["cls", "cls_patch_mean"])
def test_tiles_of_a_slide(example, hub, own_features, crops, slide, slide_image, tmp_path, record, variant):
    hub(MODEL)
    example("slide2vec_features.py", slide, tmp_path, "--pretrained", "--variant", variant)
    theirs = torch.load(tmp_path / "tile_embeddings" / f"{slide.stem}.pt")
    coordinates = np.load(tmp_path / "tiles" / f"{slide.stem}.coordinates.npz")
    corners = np.stack([coordinates["x"], coordinates["y"]], axis=1)
    assert theirs.shape == (len(corners), {"cls": 384, "cls_patch_mean": 768}[variant])
    within = (corners + 256 <= slide_image.size).all(axis=1)
    assert within.sum() > 40
    pool = {"cls": "token", "cls_patch_mean": "token+avg"}[variant]
    _, ours = own_features(MODEL, crops(corners[within].tolist()), pool=pool)
    cosine = smallest_cosine(ours, theirs[within])
    record(f"tiles of a slide, {variant}", cosine=cosine, tiles=int(within.sum()))
    assert cosine > 0.999999


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_given_images(hub, own_features, tiles, tmp_path, record, name):
    from slide2vec import ImageSpec, Model

    rows, ours = own_features(name, tiles)
    specs = [ImageSpec(sample_id=file.split(".")[0], image_path=tiles / file) for file in rows]
    artifacts = Model.from_preset(name, device="cpu").embed_images(specs, execution=execution(tmp_path))
    cosine = smallest_cosine(ours, np.stack([torch.load(one.path).numpy() for one in artifacts]))
    record(f"images, {name}", cosine=cosine, images=len(specs))
    assert cosine > 0.999999


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("side", [256, 320])
@torch.inference_mode()
def test_every_cell_of_dense_grids(hub, slide, slide_image, tmp_path, record, name, side):
    model = hub(name)
    tokens = model.forward_features(region_batch(slide_image, model, side))
    ours = tokens[:, 1:].unflatten(1, (side // 16, side // 16))
    theirs = dense_features(name, slide, tmp_path, side).permute(0, 2, 3, 1)
    cosine = smallest_cosine(ours, theirs)
    record(f"dense of {side} px, {name}", cosine=cosine, cells=ours[..., 0].numel())
    assert cosine > 0.999999


@pytest.mark.parametrize("name", [MODEL, "hydra_einfft_small_patch16_256"])
@torch.inference_mode()
def test_dense_grids_before_the_last_norm(hub, slide, slide_image, tmp_path, record, name):
    model = hub(name)
    tokens = []
    handle = model.norm.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    model.forward_features(region_batch(slide_image, model, 256))
    handle.remove()
    ours = tokens[0][:, 1:].unflatten(1, (16, 16))
    theirs = dense_features(name, slide, tmp_path, 256, feature_kind="patch_features_prenorm").permute(
        0, 2, 3, 1
    )
    cosine = smallest_cosine(ours, theirs)
    record(f"dense before the norm, {name}", cosine=cosine)
    assert cosine > 0.999999


@pytest.mark.parametrize("name", [MODEL, "vit12_small_patch16_256"])
@torch.inference_mode()
def test_attention_maps(hub, slide, slide_image, tmp_path, record, name):
    model = hub(name)
    blocks = (len(model.blocks) - 12, -1)
    ours, handles = [], []
    for index in blocks:
        attention = model.blocks[index].attn
        attention.fused_attn = False
        # without the fused kernel, the weights pass through the dropout
        handles.append(
            attention.attn_drop.register_forward_pre_hook(lambda _, inputs: ours.append(inputs[0]))
        )
    try:
        model.forward_features(region_batch(slide_image, model, 256))
    finally:
        for handle in handles:
            handle.remove()
    ours = torch.cat([weights[:, :, 0, 1:] for weights in ours], dim=1)
    options = dict(feature_kind="cls_attention", attention_blocks=blocks)
    theirs = dense_features(name, slide, tmp_path, 256, **options).flatten(2)
    assert theirs.shape == (len(REGIONS), 2 * NUM_HEADS, 256)
    # maps are close to uniform with random weights: what differs between cells is compared
    ours, theirs = (maps - maps.mean(dim=-1, keepdim=True) for maps in (ours, theirs))
    cosine = smallest_cosine(1e3 * ours, 1e3 * theirs)
    record(f"attention maps, {name}", cosine=cosine)
    assert cosine > 0.999


def test_attention_of_a_scan_is_refused(hub, slide, tmp_path):
    hub(MODEL)
    with pytest.raises(ValueError, match=r"`attention_blocks` names 3; .* choose from 12 to 23"):
        dense_features(MODEL, slide, tmp_path, 256, feature_kind="cls_attention", attention_blocks=(3,))
    with pytest.raises(ValueError, match="does not support cls_attention"):
        dense_features("vim_einfft_small_patch16_256", slide, tmp_path, 256, feature_kind="cls_attention")


def test_weights_of_ones_own(hub, own_features, tiles, tmp_path, record):
    from slide2vec import ImageSpec, Model
    from slide2vec.encoders import encoder_code

    rows, ours = own_features(MODEL, tiles)
    torch.save(hub(MODEL).state_dict(), tmp_path / "weights.pth")
    register_checkpoint("my_mvhybrid", tmp_path / "weights.pth", MODEL)
    specs = [ImageSpec(sample_id=file.split(".")[0], image_path=tiles / file) for file in rows]
    model = Model.from_preset("my_mvhybrid", device="cpu")
    artifacts = model.embed_images(specs, execution=execution(tmp_path))
    cosine = smallest_cosine(ours, np.stack([torch.load(one.path).numpy() for one in artifacts]))
    record("weights of one's own", cosine=cosine)
    assert cosine > 0.999999
    assert "weights.pth sha256:" in encoder_code("my_mvhybrid")["source"]
    with pytest.raises(ValueError, match="already registered"):
        register_checkpoint("my_mvhybrid", tmp_path / "weights.pth", MODEL)
    with pytest.raises(ValueError, match="slide2vec looks for 'mine'"):
        register_checkpoint("Mine", tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match="no such checkpoint file"):
        register_checkpoint("mine", tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="leave it out"):
        register_checkpoint("mine", tmp_path / "weights.pth", MODEL, global_pool="avg")


def test_random_weights_by_the_example(example, slide, tmp_path):
    printed = example("slide2vec_features.py", slide, tmp_path, "--model", "vit12_small_patch16_256")
    assert "× 384" in printed
