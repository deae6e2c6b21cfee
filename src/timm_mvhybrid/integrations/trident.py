"""Our backbones as patch encoders of TRIDENT: name → its ``CustomInferenceEncoder``.

By the API::

    from trident import Processor
    from timm_mvhybrid.integrations.trident import encoder

    processor.run_patch_feature_extraction_job("20x_256px_0px_overlap", encoder("mvhybrid_small_patch16_256"), "cuda:0")

or by the command line, from a script in TRIDENT's folder that is run instead of ``run_batch_of_slides.py``::

    from timm_mvhybrid.integrations.trident import register

    register()  # at the top level: the processes that TRIDENT starts, one a GPU, import this file again

    from run_batch_of_slides import main

    if __name__ == "__main__":
        main()  # takes --patch_encoder mvhybrid_small_patch16_256, and --patch_encoder_img_size with it

Use ``--mag 20 --patch_size 256``, the resolution of the backbones; TRIDENT's default, 512 px, is resized to 256 px and
so shows tissue at 1 µm/px.

TRIDENT is installed from a clone of its repository, github.com/mahmoodlab/TRIDENT: what PyPI calls ``trident`` is
another project. It was run at commit a91fa84, which requires timm 0.9.16, with which no backbone of this package runs:
install this package after it, which replaces its timm (pip then warns that TRIDENT requires another version). It runs
with timm 1.0.31.

``timm-mvhybrid embed`` on the coordinate files that TRIDENT writes gives the same features, by the same pixels. There,
patches of another size than the model's keep their size, as with ``--patch_encoder_img_size``; by default TRIDENT
resizes them.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..models import MODEL_NAMES
from .encoder import check_precision, load_encoder

__all__ = ["encoder", "register"]

_RESIZABLE = "RESIZE_SUPPORTED_PATCH_ENCODERS"


def encoder(
    model_name: str,
    *,
    weights_path: str | Path | None = None,
    target_img_size: int | None = None,
    pretrained: bool | None = None,
    precision: torch.dtype = torch.float32,
    **model_args: Any,
) -> Any:
    """Builds a patch encoder of TRIDENT.

    The names of the first two options are TRIDENT's, which passes them from its command line.

    Args:
        model_name: A name of ``timm.create_model``; TRIDENT names the folder of the features by it.
        weights_path: Take the weights of this file.
        target_img_size: Side in px at which patches enter the model; None takes the model's own.
        pretrained: Take published weights; None means yes, unless a file is given.
        precision: Of autocast; the features are float32 under each.
        **model_args: Further arguments of ``timm.create_model``.

    Returns:
        A ``CustomInferenceEncoder``, which also carries ``embedding_dim``, for slides without tissue.

    Raises:
        ImportError: TRIDENT is not installed.
        ValueError: The precision is not a dtype that features can be computed in, or the size does not suit the model.
    """
    patch_encoder_models = _patch_encoder_models()
    check_precision(precision)
    model, transform = load_encoder(
        model_name,
        pretrained=pretrained,
        checkpoint=weights_path,
        image_size=target_img_size,
        **model_args,
    )
    result = patch_encoder_models.CustomInferenceEncoder(model_name, model, transform, precision)
    result.embedding_dim = model.num_features
    return result


def register() -> tuple[str, ...]:
    """Adds the six backbones to the encoders of TRIDENT's command line; a second call has no effect.

    They are also added to the encoders that take another image size, which ``--patch_encoder_img_size`` requires.

    Raises:
        ImportError: TRIDENT is not installed.
    """
    package = _patch_encoder_models()
    for name in MODEL_NAMES:
        package.encoder_registry.setdefault(name, partial(encoder, name))
    # a frozen set that two modules hold under the same name, and that TRIDENT's scripts look up in either when they
    # need it; versions before 0.3 have neither the set nor the option
    factory = getattr(package, "encoder_factory", None)
    modules = [package] if factory is None else [package, import_module(factory.__module__)]
    for module in modules:
        if hasattr(module, _RESIZABLE):
            setattr(module, _RESIZABLE, frozenset({*getattr(module, _RESIZABLE), *MODEL_NAMES}))
    return MODEL_NAMES


def _patch_encoder_models() -> Any:
    """Imports TRIDENT's encoders."""
    try:
        return import_module("trident.patch_encoder_models")
    except ImportError as error:
        raise ImportError(
            f"TRIDENT's encoders cannot be imported ({error}); clone github.com/mahmoodlab/TRIDENT and "
            "'pip install -e' it: what 'pip install trident' installs is another project"
        ) from error
