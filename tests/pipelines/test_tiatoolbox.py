"""TIAToolbox: features of a slide and of patches, and what its names of timm models mean, against our own features."""

import pickle

import numpy as np
import pytest
import timm
import torch
import zarr
from cosines import smallest_cosine
from PIL import Image

from timm_mvhybrid.integrations import tiatoolbox as ours
from timm_mvhybrid.models import MODEL_NAMES

MODEL = "mvhybrid_small_patch16_256"
TINY = "test_mvhybrid"


@pytest.fixture
def architectures():
    """TIAToolbox's dictionary, as it was before and is put back after."""
    from tiatoolbox.models.architecture import vanilla

    before = dict(vanilla.timm_arch_dict)
    yield vanilla.timm_arch_dict
    vanilla.timm_arch_dict.clear()
    vanilla.timm_arch_dict.update(before)


def patches(tiles, rows):
    return np.stack([np.asarray(Image.open(tiles / name).convert("RGB")) for name in rows])


def extract_patches(model, images):
    output = extract(
        model,
        images,
        patch_mode=True,
        patch_input_shape=(256, 256),
        input_resolutions=[{"units": "baseline", "resolution": 1.0}],
        # it stacks batches, (batches, patches, dim), and cannot take a last one that is smaller
        batch_size=len(images),
    )
    return np.concatenate(output["features"])


def extract(model, images, batch_size=4, **options):
    from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor

    extractor = DeepFeatureExtractor(model=model, batch_size=batch_size, verbose=False)
    return extractor.run(images, **options)


def test_a_slide_by_the_example(example, hub, own_features, slide, tmp_path_factory, tmp_path, record):
    from tiatoolbox.wsicore import WSIReader

    hub(MODEL)
    example("tiatoolbox_features.py", slide, tmp_path / "out", "--pretrained")
    stored = zarr.open(tmp_path / "out" / f"{slide.stem}.zarr")
    boxes, theirs = stored["coordinates"][:], stored["features"][:]
    assert len(boxes) > 50
    # 0.499 µm/px becomes 0.5, and white goes on at the edge: the same reader reads the same boxes for our embedding
    reader, folder = WSIReader.open(slide), tmp_path_factory.mktemp("read")
    for index, box in enumerate(boxes):
        pixels = reader.read_bounds(
            box, resolution=0.5, units="mpp", coord_space="resolution", pad_constant_values=255
        )
        assert pixels.shape[:2] == (256, 256)
        Image.fromarray(pixels[..., :3]).save(folder / f"{index:05}.png")
    cosine = smallest_cosine(own_features(MODEL, folder)[1], theirs)
    record("slide at 0.5 µm/px", cosine=cosine, tiles=len(boxes))
    assert cosine > 0.999999


def test_a_slide_at_its_own_resolution(hub, own_features, crops, slide, slide_image, tmp_path, record):
    hub(MODEL)
    path = extract(
        ours.backbone(MODEL, pretrained=True),
        [slide],
        patch_mode=False,
        patch_input_shape=(256, 256),
        stride_shape=(512, 512),
        input_resolutions=[{"units": "power", "resolution": 20}],
        output_type="zarr",
        save_dir=tmp_path / "out",
    )[slide]
    stored = zarr.open(path)
    boxes = stored["coordinates"][:]
    within = (boxes[:, 2:] <= slide_image.size).all(axis=1)
    corners = boxes[within, :2].tolist()
    assert len(corners) > 10
    cosine = smallest_cosine(own_features(MODEL, crops(corners))[1], stored["features"][:][within])
    record("slide at its own resolution", cosine=cosine, tiles=len(corners))
    assert cosine > 0.999999


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_patches(hub, own_features, tiles, record, name):
    rows, expected = own_features(name, tiles)
    output = extract_patches(ours.backbone(name, pretrained=True), patches(tiles, rows))
    cosine = smallest_cosine(expected, output)
    record(f"patches, {name}", cosine=cosine, patches=len(rows))
    assert cosine > 0.999999


def test_weights_of_ones_own(hub, own_features, tiles, tmp_path, record):
    rows, expected = own_features(MODEL, tiles)
    torch.save(hub(MODEL).state_dict(), tmp_path / "weights.pth")
    model = ours.backbone(MODEL, checkpoint_path=tmp_path / "weights.pth")
    output = extract_patches(model, patches(tiles, rows))
    cosine = smallest_cosine(expected, output)
    record("weights of one's own", cosine=cosine)
    assert cosine > 0.999999


def test_a_name_means_the_whole_model_once_registered(architectures, record):
    from tiatoolbox.models.architecture.vanilla import TimmBackbone, TimmModel

    for name in (TINY, MODEL):
        architectures.pop(name, None)
    images = torch.rand(2, 3, 224, 224)
    vit = TimmBackbone("vit_tiny_patch16_224", pretrained=False)
    assert vit(images).shape == (2, 196 * 192)
    # what a plain name of ours does beforehand
    try:
        before = str(tuple(TimmBackbone(TINY, pretrained=False)(images).shape))
    except Exception as error:
        before = f"{type(error).__name__}: {error}"
    record("by a plain name, unregistered", outcome=before)
    assert before != "(2, 64)"
    ours.register()
    ours.register()
    torch.manual_seed(0)
    backbone = TimmBackbone(MODEL, pretrained=False).eval()
    torch.manual_seed(0)
    with torch.inference_mode():
        assert torch.equal(backbone(images), timm.create_model(MODEL, num_classes=0).eval()(images))
        assert TimmModel(MODEL, num_classes=3, pretrained=False).eval()(images).shape == (2, 3)


def test_options_of_one_model_do_not_stay(architectures):
    assert ours.backbone(TINY, global_pool="avg").feat_extract.global_pool == "avg"
    assert architectures[TINY] == {"model": TINY, "num_classes": 0}
    architectures[TINY] = {"model": TINY, "num_classes": 0, "global_pool": "avg"}
    ours.register()
    assert architectures[TINY]["global_pool"] == "avg"


def test_without_its_normalisation_features_would_differ(hub, own_features, tiles, record):
    rows, expected = own_features(MODEL, tiles)
    model = ours.backbone(MODEL, pretrained=True)
    model.preproc_func = None
    output = extract_patches(model, patches(tiles, rows))
    cosine = smallest_cosine(expected, output)
    record("without preproc_func", cosine=cosine)
    assert cosine < 0.999


def test_the_normalisation_is_timms(tiles):
    function = pickle.loads(pickle.dumps(ours.preproc_func(MODEL)))
    model = timm.create_model(MODEL, device="meta")
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    image = Image.open(sorted(tiles.iterdir())[0]).convert("RGB")
    result = function(np.asarray(image))
    np.testing.assert_allclose(result, transform(image).permute(1, 2, 0).numpy(), atol=1e-5)
    assert result.dtype == np.float32
    with pytest.raises(ValueError, match="expected uint8"):
        function(result)
