"""A task of one's own: do features know a patch's mean colour? Images → scores, tables, page.

python examples/own_task.py IMAGES --model mvhybrid_small_patch16_256,vit12_small_patch16_256
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import Positional, arg

from timm_mvhybrid import evaluate
from timm_mvhybrid.cli import main_of_task
from timm_mvhybrid.data import open_source, source_digest
from timm_mvhybrid.evaluate import EmbeddingOptions


@dataclass(frozen=True, kw_only=True)
class ColourOptions:
    """Options of the command: every field is a flag."""

    root: Positional[Path]
    """Folder of images, slide, tar or patch h5."""
    models: Annotated[evaluate.BackboneOptions, arg(name="")]
    embedding: Annotated[EmbeddingOptions, arg(name="")] = field(default_factory=EmbeddingOptions)
    seed: int = 0
    """Seed of folds, bootstrap and random weights."""


class Colour(evaluate.Task[ColourOptions]):
    """Predict the mean colour of a patch from its features."""

    name, title, options = "colour", "Mean colour of patches", ColourOptions

    def run(self, options, progress):
        """Embeds the patches, then predicts their colours on random folds."""
        backbones = options.models.load(options.seed, progress.on_warning)
        source = open_source(options.root)
        colours = np.stack([np.asarray(source[i]).mean(axis=(0, 1)) for i in range(len(source))])
        models, embeddings = evaluate.embed_models({"patches": source}, backbones, options.embedding)
        error = evaluate.Metric(label="Error, grey levels", higher=False)
        sheet = evaluate.ScoreSheet({"mae": error}, seed=options.seed)
        for label, by_source in embeddings.items():
            X = by_source["patches"]
            for fold in evaluate.random_folds(len(X), 5, options.seed):
                train, test = fold
                found = evaluate.ridge_probe(X[train], colours[train], X[test], "intercept", None)
                mae = np.abs(found - colours[test]).mean()
                sheet.add(label, "random", fold.name, {"mae": mae}, num_train=len(train), num_test=len(test))
        data = {"patches": source_digest(source)}
        return sheet.result(
            task=self.name, dataset=options.root.name, models=models, data=data, options=options
        )


if __name__ == "__main__":
    sys.exit(main_of_task(Colour()))
