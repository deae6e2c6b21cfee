"""Patches with drawn expression, as the objectives of fine-tuning take them."""

from types import SimpleNamespace

import numpy as np
import torch
from support.pretraining import write_patches

from timm_mvhybrid.data.manifest import open_samples
from timm_mvhybrid.ssl.loader import make_loader

GRID = 2


class MeasuredPatches:
    """Spots of one panel, transcripts of another, and pathways; a fifth of the patches was not measured."""

    def __init__(self, folder, num_patches=24, unmeasured=False):
        path = folder / "patches.h5"
        self.patches = open_samples(str(path if path.exists() else write_patches(path, num_patches)))
        random = np.random.default_rng(5)

        def panel(genes, grid):
            numbers = [np.abs(random.normal(size=genes)).astype(np.float32) + 0.5 for _ in range(4)]
            names = ("mean", "std", "token_mean", "token_std")
            statistics = (
                dict(zip(names, numbers, strict=True))
                if grid
                else {**dict(zip(names, numbers[:2], strict=False)), "token_mean": None, "token_std": None}
            )
            return SimpleNamespace(genes=tuple(f"G{i}" for i in range(genes)), grid=grid, **statistics)

        self.panels = {"visium": panel(7, None), "xenium.v1": panel(5, GRID)}
        self.pathways = SimpleNamespace(names=("A", "B", "C"))
        shapes = {
            "expression/visium": (7,),
            "expression/xenium.v1": (5,),
            "token_expression/xenium.v1": (GRID**2, 5),
            "pathways": (3,),
        }
        self.targets = {}
        for name, shape in shapes.items():
            measured = random.random((num_patches, *shape)) < (0 if unmeasured else 0.8)
            measured[::5] = False
            other = "pathways_measured" if name == "pathways" else name.replace("expression", "measured")
            self.targets[name] = torch.from_numpy(
                random.normal(size=(num_patches, *shape)).astype(np.float32)
            )
            self.targets[other] = torch.from_numpy(measured)

    def fingerprint(self):
        return "drawn"

    def images(self, indices):
        return torch.stack([torch.from_numpy(np.array(self.patches[i])) for i in indices]).permute(0, 3, 1, 2)

    def batches(self, *, crops, **layout):
        loader = make_loader(self.patches, crops=crops, num_workers=0, **layout)
        for batch in loader:
            indices = batch.indices.tolist()
            yield {
                "crops": batch,
                "corrupt": batch.corrupt,
                "image": self.images(indices),
                **{name: values[indices] for name, values in self.targets.items()},
            }
