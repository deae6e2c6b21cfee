"""Studies of seconds: two or three tiny variants on generated patches, and pictures of two classes to evaluate on."""

import json

import numpy as np
from PIL import Image
from support.pretraining import write_patches

SETTINGS = {
    "data": {"sources": ["patches.h5"], "num_workers": 0},
    "num_steps": 4,
    "batch_size": 4,
    "head": {"num_prototypes": 32, "hidden_dim": 32, "bottleneck_dim": 16},
    "crops": {"global_size_px": 64, "local_size_px": 32, "num_local": 2},
    "optimizer": {"warmup_steps": 2},
    "loss": {"teacher_temperature_warmup_steps": 3},
    "checkpoint": {"every_steps": 2, "keep": 0},
    "model": {"arguments": {"depth": 2}},
    # sums are rounded alike in a process of its own
    "parallel": {"threads": 1},
}
VARIANTS = {
    "hybrid": {"model": {"name": "test_mvhybrid"}},
    "attention": {"model": {"name": "test_vit12"}},
}
EVALUATE = {
    "pictures": {
        "kind": "classification",
        "root": "pictures",
        "num_folds": 3,
        "probes": ["knn"],
        "num_neighbours": 3,
        "baselines": "colour",
    }
}


def write_pictures(folder, num_each=9, size=64):
    """Two classes that differ in colour, faintly, so that scores are neither perfect nor chance."""
    random = np.random.default_rng(3)
    for name, shift in (("a", 0), ("b", 6)):
        (folder / name).mkdir(parents=True)
        for number in range(num_each):
            pixels = random.integers(90, 150, (size, size, 3)) + random.integers(-15, 15, 3) + shift
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def write_study(folder, name="study.yaml", **changes):
    """A study's file, its patches and pictures beside it; JSON is YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "patches.h5").exists():
        write_patches(folder / "patches.h5")
        write_pictures(folder / "pictures")
    content = {
        "study": "tiny",
        "output": "out",
        "preset": "smoke",
        "pretrain": SETTINGS,
        "variants": VARIANTS,
        "seeds": [0],
        "evaluate": EVALUATE,
        **changes,
    }
    path = folder / name
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def numbers(page_folder):
    """What a study found, without when and how fast."""
    found = json.loads((page_folder / "study.json").read_text())
    timed = ("seconds", "training_seconds", "images_per_second", "overhead", "num_starts", "finished")
    cells = [{key: value for key, value in cell.items() if key not in timed} for cell in found["cells"]]
    for result in found["results"].values():
        result["provenance"].pop("created")
    return {**found, "cells": cells}
