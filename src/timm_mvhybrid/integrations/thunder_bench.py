"""Our backbones in THUNDER: name → the class that its ``benchmark`` looks for in a file.

A file ``model.py``::

    from timm_mvhybrid.integrations.thunder_bench import model_class

    Backbone = model_class("mvhybrid_small_patch16_256")

and then::

    from thunder import benchmark

    benchmark("custom:model.py", dataset="bach", task="knn")

thunder-bench 0.2.2 requires timm 1.0.20 or older, which this package cannot use, but runs with newer versions:
``pip install thunder-bench``, then ``pip install timm-mvhybrid``, which replaces timm. pip then warns that
thunder-bench requires another version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from .encoder import Transform, load_encoder, pipeline_module

__all__ = ["model_class"]


def model_class(
    model_name: str,
    *,
    pretrained: bool | None = None,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    **model_args: Any,
) -> type[Any]:
    """Makes the subclass of THUNDER's ``PretrainedModel`` that THUNDER creates without arguments.

    Args:
        model_name: A name of ``timm.create_model``; THUNDER names its folders by it.
        pretrained: Take published weights; None means yes, unless a checkpoint is given.
        checkpoint: Take the weights of this file; as ``checkpoint_path`` it is taken too.
        image_size: Side in px at which patches enter the model; None takes the model's own.
        **model_args: Further arguments of ``timm.create_model``.

    Returns:
        The class. Classification takes the model's own pooling, segmentation the patch tokens, row by row.

    Raises:
        MissingPackageError: thunder-bench is not installed.
    """
    remedy = "pip install thunder-bench, and then timm-mvhybrid"
    base: type[Any] = pipeline_module(
        "thunder.models.pretrained_models", "PretrainedModel", remedy
    ).PretrainedModel

    class Backbone(base):
        def __init__(self) -> None:
            super().__init__()
            # THUNDER uses the name for folders
            self.name = model_name.replace(":", "_").replace("/", "_")
            self.vlm = False
            self.model, self._transform = load_encoder(
                model_name,
                pretrained=pretrained,
                checkpoint=checkpoint,
                image_size=image_size,
                **model_args,
            )
            self.emb_dim = self.model.num_features
            # as THUNDER does with its own frozen models
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = self.model(images)
            return features

        def get_transform(self) -> Transform:
            transform: Transform = self._transform
            return transform

        def get_linear_probing_embeddings(self, x: Tensor) -> Tensor:
            features: Tensor = self.model(x)
            return features

        def get_segmentation_embeddings(self, x: Tensor) -> Tensor:
            # the attributes of a module may be anything
            model: Any = self.model
            tokens: Tensor = model.forward_features(x)
            return tokens[:, model.num_prefix_tokens :]

    return Backbone
