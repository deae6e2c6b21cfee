"""THUNDER: its benchmark on tiles of the slide, from a custom data set and our model to its stored embeddings."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cosines import smallest_cosine

ROOT = Path(__file__).parents[2]
MODEL_FILE = ROOT / "examples" / "pipelines" / "thunder_bench_model.py"
NAME = "mvhybrid_small_patch16_256"
CLASSES = ("a", "b")
TASKS = ["pre_computing_embeddings", "knn", "linear_probing"]


@pytest.fixture
def dataset(tiles, tmp_path, monkeypatch):
    """A custom data set of THUNDER in which every split holds all tiles; returns its file and the tiles' names."""
    monkeypatch.setenv("THUNDER_BASE_DATA_FOLDER", str(tmp_path / "thunder"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "thunder" / "outputs").mkdir(parents=True)
    paths = sorted(tiles.glob("*.png"))
    labels = [index % len(CLASSES) for index in range(len(paths))]
    split = {"images": [str(path) for path in paths], "labels": labels}
    splits = tmp_path / "splits.json"
    few_shot = {str(shots): {"0": list(range(len(paths)))} for shots in (1, 2)}
    splits.write_text(
        json.dumps({**dict.fromkeys(("train", "val", "test"), split), "train_few_shot": few_shot})
    )
    description = tmp_path / "dataset.yaml"
    fields = {
        "dataset_name": "tiles_of_a_slide",
        "data_splits": str(splits),
        "base_data_folder": "",
        "compatible_tasks": TASKS,
        "nb_classes": len(CLASSES),
        "nb_train_samples": len(paths),
        "nb_val_samples": len(paths),
        "nb_test_samples": len(paths),
        "image_sizes": [[256, 256]],
        "mpp": 0.5,
        "classes": list(CLASSES),
        "class_to_id": {name: index for index, name in enumerate(CLASSES)},
        "id_to_class": {index: name for index, name in enumerate(CLASSES)},
        "id_to_classname": {index: name for index, name in enumerate(CLASSES)},
    }
    # JSON is YAML
    description.write_text(json.dumps(fields))
    return description, [path.name for path in paths]


def test_benchmark(dataset, hub, own_features, tiles, tmp_path, record):
    from thunder import benchmark

    description, names = dataset
    hub(NAME)
    benchmark(f"custom:{MODEL_FILE}", dataset=f"custom:{description}", task="knn")
    stored = tmp_path / "thunder" / "embeddings" / "tiles_of_a_slide" / NAME / "test" / "embeddings.h5"
    with h5py.File(stored) as file:
        theirs = np.stack([file[str(index)][:] for index in range(len(names))])
    rows, features = own_features(NAME, tiles)
    cosine = smallest_cosine(features[[rows[name] for name in names]], theirs)
    results = list((tmp_path / "thunder" / "outputs" / "res").rglob("*.json"))
    record("knn", cosine=cosine, files_of_results=len(results))
    assert cosine >= 0.999
    assert results


def test_segmentation_embeddings_are_the_patch_tokens(hub, tiles, record):
    """What THUNDER's segmentation head is handed; it makes a square of the tokens, row by row."""
    from PIL import Image
    from thunder.models.utils import load_custom_model_from_file

    ours = hub(NAME)
    model = load_custom_model_from_file(str(MODEL_FILE)).eval()
    assert (model.name, model.emb_dim) == (NAME, 384)
    images = [model.get_transform()(Image.open(path)) for path in sorted(tiles.glob("*.png"))[:2]]
    with torch.inference_mode():
        theirs = model.get_embeddings(torch.stack(images), model, "segmentation")
        tokens = ours.forward_features(torch.stack(images))
    assert theirs.shape == (2, 256, 384)
    cosine = smallest_cosine(tokens[:, 1:].numpy(), theirs.numpy())
    record("segmentation", cosine=cosine)
    assert cosine >= 0.999
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_checkpoint_of_ones_own(tmp_path, monkeypatch):
    from support.exports import exported
    from thunder.models.utils import load_custom_model_from_file

    folder, ours = exported(tmp_path)
    monkeypatch.setitem(os.environ, "MODEL", "test_mvhybrid")
    monkeypatch.setitem(os.environ, "CHECKPOINT", str(folder / "model.safetensors"))
    model = load_custom_model_from_file(str(MODEL_FILE))
    assert torch.equal(model.model.patch_embed.proj.weight, ours.patch_embed.proj.weight)
