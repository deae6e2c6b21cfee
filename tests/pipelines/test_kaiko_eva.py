"""kaiko-eva: its own command line on pictures in the layout of its data sets, against our own features of the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import yaml
from cosines import smallest_cosine
from eva.vision.data.transforms import ResizeAndCrop
from eva.vision.utils import io
from support.exports import exported

from timm_mvhybrid.integrations.kaiko_eva import environment
from timm_mvhybrid.models import HE_MEAN, HE_STD

EXAMPLES = Path(__file__).parents[2] / "examples" / "pipelines"
MODEL = "mvhybrid_small_patch16_256"
COSINE = 0.999
NUM_PREDICTED = 4
DEADLINE_S = 900


@pytest.fixture
def eva(tmp_path):
    """Runs ``eva`` in a folder of its own, on the CPU, and returns that folder."""

    def run(command, config, program=("-m", "eva"), fails=False, **variables):
        result = subprocess.run(
            [sys.executable, *program, command, "--config", str(config)],
            cwd=tmp_path,
            env={**os.environ, "ACCELERATOR": "cpu", "N_RUNS": "1", "N_DATA_WORKERS": "1", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        if fails:
            assert result.returncode != 0
            return result.stdout
        assert result.returncode == 0, result.stdout[-6000:]
        return tmp_path

    return run


@pytest.fixture(scope="module")
def corner(slide_image):
    """The i-th of many places of the slide, (x, y) in px."""
    width, height = slide_image.size

    def place(index):
        return (index * 211) % (width - 256), (index * 307) % (height - 256)

    return place


@pytest.fixture(scope="module")
def bach(tmp_path_factory, slide_image, corner):
    """400 pictures where eva looks for those of BACH."""
    root = tmp_path_factory.mktemp("bach")
    for label, name in enumerate(("Benign", "InSitu", "Invasive", "Normal")):
        folder = root / "ICIAR2018_BACH_Challenge" / "Photos" / name
        folder.mkdir(parents=True)
        for index in range(100):
            x, y = corner(100 * label + index)
            slide_image.crop((x, y, x + 256, y + 256)).save(folder / f"{name.lower()}_{index:03}.tif")
    return root


@pytest.fixture(scope="module")
def consep(tmp_path_factory, slide_image, corner):
    """41 pictures and masks of kinds of nuclei where eva looks for those of CoNSeP."""
    root = tmp_path_factory.mktemp("consep")
    random = np.random.default_rng(0)
    for folder, name, count in (("Train", "train", 27), ("Test", "test", 14)):
        for kind in ("Images", "Labels"):
            (root / folder / kind).mkdir(parents=True)
        for index in range(1, count + 1):
            x, y = corner(index + count)
            slide_image.crop((x, y, x + 250, y + 250)).save(root / folder / "Images" / f"{name}_{index}.png")
            kinds = np.kron(random.integers(0, 8, (5, 5)), np.ones((50, 50)))
            scipy.io.savemat(root / folder / "Labels" / f"{name}_{index}.mat", {"type_map": kinds})
    return root


def few(config, root, folder):
    """A configuration that stops behind one batch of each split, and the variables that name the pictures under root.

    It is no option of the command line, since eva refuses those of a trainer with some versions of jsonargparse.
    """
    text = config.read_text()
    assert text.count("\n    n_runs:") == 1
    limited = folder / f"few_{config.name}"
    limited.write_text(text.replace("\n    n_runs:", "\n    limit_predict_batches: 1\n    n_runs:"))
    return limited, {"DATA_ROOT": str(root), "PREDICT_BATCH_SIZE": str(NUM_PREDICTED)}


def stored_classes(folder):
    """What eva wrote: {picture: features}."""
    root = folder / "embeddings" / "bach"
    rows = [line.split(",") for line in (root / "manifest.csv").read_text().splitlines()[1:]]
    assert {row[3] for row in rows} == {"train", "val"}
    assert len(rows) == 2 * NUM_PREDICTED
    return {row[0]: torch.load(root / row[1])[0].numpy() for row in rows}


def our_classes(stored, bach, own_features, model, tmp_path, **options):
    """Our features of the same pictures, in the same order."""
    folder = tmp_path / "ours"
    folder.mkdir()
    names = {}
    for index, name in enumerate(stored):
        names[name] = f"{index:03}.tif"
        (folder / names[name]).symlink_to(bach / "ICIAR2018_BACH_Challenge" / "Photos" / name)
    rows, features = own_features(model, folder, **options)
    return features[[rows[names[name]] for name in stored]]


def test_classification(eva, bach, hub, own_features, tmp_path, record):
    hub(MODEL)
    config, variables = few(EXAMPLES / "kaiko_eva_classification.yaml", bach, tmp_path)
    folder = eva("predict_fit", config, MAX_STEPS="2", **variables)
    stored = stored_classes(folder)
    ours = our_classes(stored, bach, own_features, MODEL, tmp_path)
    cosine = smallest_cosine(ours, np.stack(list(stored.values())))
    record("classification", cosine=cosine)
    assert cosine >= COSINE
    [results] = folder.glob("logs/bach/*/results.json")
    [scores] = json.loads(results.read_text())["metrics"]["val"]
    assert np.isfinite(scores["val/MulticlassAccuracy"]["mean"])
    assert list(folder.glob("logs/bach/*/run_0/checkpoints/best.ckpt"))


def maps_by_us(model, consep, names):
    """The last block's tokens as maps, of pictures transformed by eva: it resizes 250 px bilinearly, our own way is bicubic."""
    transform = ResizeAndCrop(256, HE_MEAN, HE_STD)
    tokens = []
    hook = model.blocks[-1].register_forward_hook(lambda *call: tokens.append(call[2]))
    for name in names:
        folder = "Train" if name.startswith("train") else "Test"
        image = transform(io.read_image_as_tensor(str(consep / folder / "Images" / name)))
        with torch.no_grad():
            model(image[None])
    hook.remove()
    return torch.cat(tokens)[:, 1:].unflatten(1, (16, 16)).numpy()


def test_feature_maps_for_segmentation(eva, consep, hub, tmp_path, record):
    model = hub(MODEL)
    config, variables = few(EXAMPLES / "kaiko_eva_segmentation.yaml", consep, tmp_path)
    folder = eva("predict", config, **variables)
    root = folder / "embeddings" / "consep"
    rows = [line.split(",") for line in (root / "manifest.csv").read_text().splitlines()[1:]]
    assert len(rows) == 2 * NUM_PREDICTED
    theirs = []
    for row in rows:
        [features] = torch.load(root / row[1])
        assert features.shape == (384, 16, 16)
        theirs.append(features.permute(1, 2, 0).numpy())
    cosine = smallest_cosine(maps_by_us(model, consep, [row[0] for row in rows]), np.stack(theirs))
    record("segmentation maps", cosine=cosine)
    assert cosine >= COSINE


def test_segmentation_trains_its_decoder(eva, consep, hub):
    hub("test_mvhybrid")
    folder = eva(
        "fit",
        EXAMPLES / "kaiko_eva_segmentation.yaml",
        BACKBONE="test_mvhybrid",
        IN_FEATURES="64",
        RESIZE_DIM="128",
        BATCH_SIZE="16",
        MAX_STEPS="2",
        DATA_ROOT=str(consep),
    )
    [results] = folder.glob("logs/consep/*/results.json")
    [scores] = json.loads(results.read_text())["metrics"]["val"]
    assert np.isfinite(scores["val/MonaiDiceScore"]["mean"])
    assert 0 < scores["val/AverageLoss"]["mean"] < 1
    [checkpoint] = folder.glob("logs/consep/*/run_0/checkpoints/best.ckpt")
    weights = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert weights
    assert all(name.startswith("decoder.") for name in weights)


@pytest.fixture
def registry_config(tmp_path):
    """A configuration that takes what eva's own take: a name of eva's registry and variables beside it."""
    config = yaml.safe_load((EXAMPLES / "kaiko_eva_classification.yaml").read_text())
    for callback in config["trainer"]["init_args"]["callbacks"]:
        if "EmbeddingsWriter" in callback["class_path"]:
            callback["init_args"]["backbone"] = {
                "class_path": "eva.vision.models.ModelFromRegistry",
                "init_args": {
                    "model_name": "${oc.env:MODEL_NAME}",
                    "model_extra_kwargs": "${oc.env:MODEL_EXTRA_KWARGS, null}",
                },
            }
    for dataset in config["data"]["init_args"]["datasets"]["predict"]:
        dataset["init_args"]["transforms"]["init_args"] = {
            "size": "${oc.env:RESIZE_DIM, 224}",
            "mean": "${oc.env:NORMALIZE_MEAN, [0.485, 0.456, 0.406]}",
            "std": "${oc.env:NORMALIZE_STD, [0.229, 0.224, 0.225]}",
        }
    path = tmp_path / "registry.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


OURS = ("-m", "timm_mvhybrid.integrations.kaiko_eva")


def test_configurations_of_eva_by_our_command(
    eva, registry_config, bach, hub, own_features, tmp_path, record
):
    hub(MODEL)
    config, variables = few(registry_config, bach, tmp_path)
    folder = eva("predict", config, program=OURS, MODEL_NAME=f"timm/{MODEL}", **variables)
    stored = stored_classes(folder)
    ours = our_classes(stored, bach, own_features, MODEL, tmp_path)
    cosine = smallest_cosine(ours, np.stack(list(stored.values())))
    record("by eva's registry", cosine=cosine)
    assert cosine >= COSINE


def test_weights_of_a_file(eva, registry_config, bach, tmp_path):
    """The same file through eva's registry and through our configuration gives the same features."""
    weights, model = exported(tmp_path / "exports", "test_mvhybrid", seed=7)
    file = weights / "model.safetensors"
    config, variables = few(registry_config, bach, tmp_path)
    given = environment("test_mvhybrid", file)
    stored = stored_classes(eva("predict", config, program=OURS, **variables, **given))
    (tmp_path / "embeddings").rename(tmp_path / "by_registry")
    config, _ = few(EXAMPLES / "kaiko_eva_classification.yaml", bach, tmp_path)
    variables |= {"BACKBONE": "test_mvhybrid", "PRETRAINED": "false", "CHECKPOINT_PATH": str(file)}
    again = stored_classes(eva("predict", config, RESIZE_DIM="128", **variables))
    theirs = np.stack(list(stored.values()))
    np.testing.assert_array_equal(np.stack(list(again.values())), theirs)
    transform = ResizeAndCrop(128, HE_MEAN, HE_STD)
    photos = bach / "ICIAR2018_BACH_Challenge" / "Photos"
    images = torch.stack([transform(io.read_image_as_tensor(str(photos / name))) for name in stored])
    with torch.no_grad():
        np.testing.assert_allclose(theirs, model(images).numpy(), atol=1e-5)


def test_eva_alone_does_not_know_the_backbones(eva, registry_config, bach, tmp_path):
    config, variables = few(registry_config, bach, tmp_path)
    output = eva("predict", config, fails=True, MODEL_NAME="timm/test_mvhybrid", **variables)
    assert "timm/test_mvhybrid" in output
    assert "not registered" in output or "Invalid" in output, output[-3000:]
