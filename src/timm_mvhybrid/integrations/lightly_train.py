"""Our backbones pretrained by LightlyTrain: name → the arguments that suit it.

::

    import lightly_train
    from timm_mvhybrid import create_model
    from timm_mvhybrid.integrations.lightly_train import arguments

    lightly_train.pretrain(out="run", data="tiles", method="dino", **arguments("mvhybrid_small_patch16_256"))
    model = create_model(
        "mvhybrid_small_patch16_256", global_pool="avg", checkpoint_path="run/exported_models/exported_last.pt"
    )

By itself LightlyTrain normalises by ImageNet's mean and deviation and takes crops of 224 px, and its command line does
not know our names. Methods ``dino`` and ``simclr`` were tried; ``dinov2`` needs LightlyTrain's own models.
LightlyTrain trains, and its ``embed`` returns, the mean of the patch tokens: load its weights with
``global_pool="avg"``, because no method there trains the class token. LightlyTrain is under the AGPL.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.data import resolve_data_config

from ..models import HybridVisionTransformer
from ..runtime.errors import ParameterError

__all__ = ["arguments"]


def arguments(model_name: str, *, image_size: int | None = None, **model_args: Any) -> dict[str, Any]:
    """Returns the arguments of ``lightly_train.pretrain`` that suit a backbone.

    Args:
        model_name: A backbone of this package.
        image_size: Side of the global crops in px; None takes the model's own, 256.
        **model_args: Further arguments of ``timm.create_model``, such as ``checkpoint_path`` to continue from.

    Returns:
        ``model``, ``model_args`` and ``transform_args``. ``lightly_train.embed`` finds the normalisation in its
        checkpoint; ``image_size`` must be given to it again.

    Raises:
        ParameterError: The model is not of this package, or the size does not suit it.
    """
    model = timm.create_model(model_name, pretrained=False)
    if not isinstance(model, HybridVisionTransformer):
        raise ParameterError(
            f"`model_name` is {model_name!r}, not a model of this package, so LightlyTrain's own arguments suit it; "
            "'timm-mvhybrid models' lists ours"
        )
    config = resolve_data_config({}, model=model)
    size = config["input_size"][-1] if image_size is None else image_size
    patch_size = model.patch_embed.patch_size[0]
    if size < 1 or size % patch_size:
        raise ParameterError(f"`image_size` is {size} px; {model_name} takes multiples of {patch_size} px")
    return {
        "model": f"timm/{model_name}",
        "model_args": {"dynamic_img_size": True, **model_args},
        "transform_args": {
            "image_size": (size, size),
            "normalize": {"mean": tuple(config["mean"]), "std": tuple(config["std"])},
        },
    }
