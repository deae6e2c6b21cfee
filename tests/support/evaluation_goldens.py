"""Reference numbers made by HEST's, Stem's, UNI's and PANTHER's own code; see tests/golden/evaluation/README.md."""

import json
import math
import tarfile
from pathlib import Path

import numpy as np
import torch

from timm_mvhybrid.data import PatchH5Source

FOLDER = Path(__file__).parent.parent / "golden" / "evaluation"


def reference(file="ref.json"):
    return json.loads((FOLDER / file).read_text())


def inputs(name):
    return dict(np.load(FOLDER / f"{name}.npz"))


def with_nan(values):
    return np.array([math.nan if value is None else value for value in values])


def unpack_hest_task(folder):
    with tarfile.open(FOLDER / "hest_layout.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "SYNTH"


def hest_task_embeddings(task):
    """The fixed encoder of the end-to-end numbers, in torch: half of its features saturate, and NumPy's tanh rounds
    these otherwise, which standardising them then blows up."""
    weight = torch.from_numpy(np.random.default_rng(123).normal(0, 0.2, (192, 384)).astype(np.float32))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    embeddings = {}
    for file in sorted((task / "patches").glob("*.h5")):
        source = PatchH5Source(file)
        pixels = torch.from_numpy(np.stack([source[index] for index in range(len(source))]))
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
        pooled = torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)
        embeddings[file.stem] = torch.tanh(pooled @ weight).numpy()
    return embeddings
