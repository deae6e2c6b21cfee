"""HEST, TRIDENT, CLAM, THUNDER and LightlyTrain without being installed: stand-ins that ask what the real ones ask.

The stand-ins hold the pipelines to what was read of them in 2026: how they call an encoder, and what they do with what
it returns.
"""

import pickle
import sys
import types

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support.exports import exported

from timm_mvhybrid.embed.backbone import load_encoder
from timm_mvhybrid.integrations import clam, hest, lightly_train, thunder_bench, trident
from timm_mvhybrid.models import HE_MEAN, HE_STD, MODEL_NAMES
from timm_mvhybrid.runtime.errors import MissingPackageError, ParameterError

NAME = "test_mvhybrid"


def tile(side=224, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def module(monkeypatch, name, **contents):
    """Puts a module of the given contents where Python looks first."""
    made = types.ModuleType(name)
    made.__path__ = []
    for key, value in contents.items():
        setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def features_as_stored(model, transform, precision, images):
    """What HEST and TRIDENT do with an encoder: transform, autocast, NumPy without a cast."""
    model.to("cpu")
    model.eval()
    batch = torch.stack([transform(image) for image in images])
    with torch.inference_mode(), torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        return model(batch).cpu().numpy()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder, model = exported(tmp_path_factory.mktemp("weights"), NAME)
    return folder / "model.safetensors", model


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
def test_hest(checkpoint, precision):
    path, expected = checkpoint
    model, transform, answered = hest.encoder(NAME, checkpoint=path, precision=precision)
    assert answered is precision
    images = [tile(seed=seed) for seed in range(2)]
    stored = features_as_stored(model, transform, precision, images)
    assert stored.dtype == np.float32
    assert stored.shape == (2, expected.num_features)
    # the patches of 224 px are neither enlarged nor cut
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
    batch = (pixels - torch.tensor(HE_MEAN).view(3, 1, 1)) / torch.tensor(HE_STD).view(3, 1, 1)
    with torch.inference_mode():
        ours = expected(batch).numpy()
    difference = np.linalg.norm(stored - ours) / np.linalg.norm(ours)
    assert difference < {torch.float32: 1e-5}.get(precision, 0.05)


@pytest.mark.parametrize("precision", ["fp16", torch.float64, None])
def test_precision_is_a_dtype(precision):
    with pytest.raises(ParameterError, match=r"give torch.float32, torch.float16 or torch.bfloat16"):
        hest.encoder(NAME, pretrained=False, precision=precision)


def test_transform_can_be_sent_to_worker_processes():
    _, transform = load_encoder(NAME, pretrained=False)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(tile()), transform(tile()))


def test_model_is_in_evaluation_mode():
    assert not load_encoder(NAME, pretrained=False)[0].training


def test_nothing_of_a_patch_is_cut_off():
    # by its own configuration this model sees the middle 87.5 % of an image
    model, transform = load_encoder("test_vit2", pretrained=False, pretrained_cfg_overlay={"crop_pct": 0.875})
    side = model.default_cfg["input_size"][-1]
    image = tile(side)
    image.paste((255, 255, 255), (0, 0, side, 1))
    mean, std = (torch.tensor(model.default_cfg[key]).view(3, 1) for key in ("mean", "std"))
    torch.testing.assert_close(transform(image)[:, 0], ((1 - mean) / std).expand(3, side))


@pytest.mark.parametrize("size", [100, 0, -16])
def test_size_that_no_patch_fits(size):
    with pytest.raises(ValueError, match=f"`image_size` is {size} px; {NAME} takes multiples of 16 px"):
        load_encoder(NAME, pretrained=False, image_size=size)


def test_a_checkpoint_has_timms_name_too(checkpoint):
    path, expected = checkpoint
    for named in ({"checkpoint": path}, {"checkpoint_path": path}):
        for model in (
            load_encoder(NAME, **named)[0],
            hest.encoder(NAME, **named)[0],
            clam.encoder(NAME, 128, **named)[0],
        ):
            assert torch.equal(model.patch_embed.proj.weight, expected.patch_embed.proj.weight)


def test_unpooled_model_is_refused():
    with pytest.raises(ValueError, match="`global_pool` is ''"):
        load_encoder(NAME, pretrained=False, global_pool="")


def test_published_weights_are_the_default():
    with pytest.raises(RuntimeError, match="no pretrained weights"):
        load_encoder(NAME)


class CustomInferenceEncoder(torch.nn.Module):
    """TRIDENT's: four positional arguments, of which it keeps three under names of its own."""

    def __init__(self, enc_name, model, transforms, precision):
        super().__init__()
        self.enc_name, self.model, self.eval_transforms = enc_name, None, transforms
        self.model, self.precision = model, precision

    def forward(self, x):
        return self.model(x)


@pytest.fixture
def registry(monkeypatch):
    registry = {"uni_v1": CustomInferenceEncoder}
    module(monkeypatch, "trident")
    module(
        monkeypatch,
        "trident.patch_encoder_models",
        CustomInferenceEncoder=CustomInferenceEncoder,
        encoder_registry=registry,
    )
    return registry


def test_trident_encoder(registry, checkpoint):
    path, expected = checkpoint
    made = trident.encoder(NAME, weights_path=path, target_img_size=128)
    assert (made.enc_name, made.precision, made.embedding_dim) == (NAME, torch.float32, expected.num_features)
    stored = features_as_stored(made, made.eval_transforms, made.precision, [tile(128), tile(128, 1)])
    with torch.inference_mode():
        ours = expected(torch.stack([made.eval_transforms(tile(128)), made.eval_transforms(tile(128, 1))]))
    np.testing.assert_allclose(stored, ours.numpy(), rtol=1e-5, atol=1e-5)
    assert made.eval_transforms(tile(512)).shape == (3, 128, 128)


def test_trident_command_line(registry, tmp_path):
    assert trident.register() == MODEL_NAMES
    assert list(registry) == ["uni_v1", *MODEL_NAMES]
    first = registry[MODEL_NAMES[0]]
    trident.register()
    assert registry[MODEL_NAMES[0]] is first
    # TRIDENT's factory passes its option for a local file, None without it
    folder, expected = exported(tmp_path, MODEL_NAMES[0])
    made = first(weights_path=str(folder / "model.safetensors"))
    assert made.enc_name == MODEL_NAMES[0]
    assert torch.equal(made.model.patch_embed.proj.weight, expected.patch_embed.proj.weight)
    with pytest.raises(RuntimeError, match="no pretrained weights"):
        first(weights_path=None)


def test_trident_is_missing_or_another_project(monkeypatch):
    with pytest.raises(MissingPackageError, match=r"clone github.com/mahmoodlab/TRIDENT"):
        trident.register()
    module(monkeypatch, "trident")
    with pytest.raises(MissingPackageError, match="another project"):
        trident.encoder(NAME, pretrained=False)


CLAM_SCRIPT = """
import argparse, json
from models import get_encoder
parser = argparse.ArgumentParser()
parser.add_argument("--model_name", default="resnet50_trunc", choices=["resnet50_trunc", "uni_v1"])
parser.add_argument("--target_patch_size", type=int, default=224)
parser.add_argument("--batch", choices=["1", "2"])
args = parser.parse_args()
from PIL import Image
model, transform = get_encoder(args.model_name, target_img_size=args.target_patch_size)
print(json.dumps([type(model).__name__, list(transform(Image.new("RGB", (256, 256))).shape)]))
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder laid out as CLAM's, whose ``models`` package is found only from there."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("from .builder import get_encoder\n")
    (tmp_path / "models" / "builder.py").write_text(
        "def get_encoder(model_name, target_img_size=224):\n    return model_name, lambda image: image\n"
    )
    (tmp_path / "extract_features_fp.py").write_text(CLAM_SCRIPT)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("models", "models.builder"):
        sys.modules.pop(name, None)


def test_clam_script(clone, capsys):
    folder, _ = exported(clone / "weights", MODEL_NAMES[0])
    script = ["extract_features_fp.py", "--model_name", MODEL_NAMES[0], "--target_patch_size", "256"]
    path, arguments = list(sys.path), list(sys.argv)
    clam.main(["--checkpoint", str(folder / "model.safetensors"), *script])
    assert capsys.readouterr().out.strip() == '["HybridVisionTransformer", [3, 256, 256]]'
    assert (sys.path, sys.argv) == (path, arguments)


def test_clam_refuses_other_names_as_before(clone, capsys):
    for options in (["--model_name", "none"], ["--batch", MODEL_NAMES[0]]):
        with pytest.raises(SystemExit):
            clam.main(["extract_features_fp.py", *options])
        assert "invalid choice" in capsys.readouterr().err


def test_clam_get_encoder(clone, monkeypatch, checkpoint):
    monkeypatch.syspath_prepend(clone)
    clam.install(pretrained=False)
    clam.install(pretrained=False)
    import models

    assert models.get_encoder("uni_v1", target_img_size=224)[0] == "uni_v1"
    assert models.builder.get_encoder.replaces.__module__ == "models.builder"
    with pytest.warns(UserWarning, match="resized to 224 px, and .* was made for 256 px"):
        model, transform = models.get_encoder(MODEL_NAMES[0])
    assert transform(tile(256)).shape == (3, 224, 224)
    with torch.inference_mode():
        assert model(transform(tile(256))[None]).shape == (1, 384)


def test_clam_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingPackageError, match=r"folder of a clone of github.com/mahmoodlab/CLAM"):
        clam.install()
    with pytest.raises(SystemExit):
        clam.main(["extract_features_fp.py"])


def test_thunder_model(monkeypatch, checkpoint):
    class PretrainedModel(torch.nn.Module):
        def get_embeddings(self, x, model, task_type):
            segmentation = task_type == "segmentation"
            return (self.get_segmentation_embeddings if segmentation else self.get_linear_probing_embeddings)(
                x
            )

    path, expected = checkpoint
    for name in ("thunder", "thunder.models"):
        module(monkeypatch, name)
    module(monkeypatch, "thunder.models.pretrained_models", PretrainedModel=PretrainedModel)
    model = thunder_bench.model_class(NAME, checkpoint=path)()
    assert isinstance(model, PretrainedModel)
    assert (model.name, model.emb_dim, model.vlm) == (NAME, expected.num_features, False)
    batch = model.get_transform()(tile(128))[None]
    with torch.inference_mode():
        torch.testing.assert_close(model.get_embeddings(batch, model, "linear_probing"), expected(batch))
        tokens = expected.forward_features(batch)[:, 1:]
        torch.testing.assert_close(model.get_embeddings(batch, model, "segmentation"), tokens)


def test_thunder_is_missing():
    with pytest.raises(MissingPackageError, match="pip install thunder-bench"):
        thunder_bench.model_class(NAME)


def test_lightly_train_arguments():
    made = lightly_train.arguments(MODEL_NAMES[0], pretrained=True)
    assert made == {
        "model": f"timm/{MODEL_NAMES[0]}",
        "model_args": {"dynamic_img_size": True, "pretrained": True},
        "transform_args": {"image_size": (256, 256), "normalize": {"mean": HE_MEAN, "std": HE_STD}},
    }
    assert lightly_train.arguments(NAME, image_size=224)["transform_args"]["image_size"] == (224, 224)


@pytest.mark.parametrize(("name", "size"), [(NAME, 100), ("test_resnet", None)])
def test_lightly_train_refuses(name, size):
    with pytest.raises(ParameterError, match=r"takes multiples of 16 px|not a model of this package"):
        lightly_train.arguments(name, image_size=size)


def test_importing_ours_imports_none_of_theirs():
    loaded = {name.split(".")[0] for name in sys.modules}
    assert not loaded & {"trident", "hest", "thunder"}
    assert timm.is_model(NAME)
