"""TIAToolbox: the backbones in its dictionary of architectures, with the normalisation that it leaves to the user.

    from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor
    from timm_mvhybrid.integrations.tiatoolbox import backbone

    extractor = DeepFeatureExtractor(model=backbone("mvhybrid_small_patch16_256", pretrained=True))
    extractor.run(["slide.svs"], patch_mode=False, patch_input_shape=(256, 256), save_dir="features",
                  input_resolutions=[{"units": "mpp", "resolution": 0.5}], output_type="zarr")

By hand, two things go wrong. ``TimmBackbone(name)`` runs a timm model that is not in the dictionary without the last
of its children, as a plain sequence of the others: that is an error or, for timm's own vision transformers, silently
all tokens in one long vector, without class token or position embedding. And a model without ``preproc_func`` receives
raw values of 0 to 255. ``register`` prevents the first: it puts every backbone into the dictionary under its own timm
name, so that the name means the whole model from then on. ``backbone`` prevents both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
from timm.data import resolve_data_config

from ..models import ALL_MODEL_NAMES
from ..models.creation import load_checkpoint

_INSTALL = "tiatoolbox is not installed; run: pip install 'tiatoolbox>=2.1'"


def register() -> None:
    """Puts the backbones into TIAToolbox's dictionary of timm architectures, each under its timm name.

    From then on ``TimmBackbone`` and ``TimmModel`` take the names and return class-token features. A second call has no
    effect.

    Raises:
        ImportError: TIAToolbox is not installed, or older than 2.1.
    """
    architectures = _vanilla().timm_arch_dict
    for name in ALL_MODEL_NAMES:
        architectures.setdefault(name, {"model": name, "num_classes": 0})


def preproc_func(model_name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Makes the function that normalises one patch for a model.

    Returns:
        A function: uint8 (height, width, 3), or more channels of which the first three count, to float32
        (height, width, 3); the value for ``preproc_func`` of a TIAToolbox model. It can be sent to other processes.
    """
    config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(model_name).to_dict())
    return _Normalisation(config["mean"], config["std"])


def backbone(
    model_name: str, *, pretrained: bool = False, checkpoint: str | Path | None = None, **model_args: Any
) -> Any:
    """Builds a model for ``DeepFeatureExtractor``: whole, with class-token features, and with its normalisation.

    Args:
        model_name: A timm name, of this package or any other model whose features are (batch, dim).
        pretrained: Whether to take the published weights.
        checkpoint: Take the weights of this file; as ``checkpoint_path`` it is taken too.
        **model_args: Further arguments of ``timm_mvhybrid.create_model``.

    Raises:
        ImportError: TIAToolbox is not installed, or older than 2.1.
    """
    vanilla = _vanilla()
    # TIAToolbox would pass it to timm, which verifies less
    file = model_args.pop("checkpoint_path", None) or checkpoint
    before = dict(vanilla.timm_arch_dict)
    # TimmBackbone takes options from the dictionary alone
    vanilla.timm_arch_dict[model_name] = {"model": model_name, "num_classes": 0, **model_args}
    try:
        model = vanilla.TimmBackbone(backbone=model_name, pretrained=pretrained)
    finally:
        vanilla.timm_arch_dict.clear()
        vanilla.timm_arch_dict.update(before)
        register()
    if file:
        load_checkpoint(model.feat_extract, file)
    model.preproc_func = preproc_func(model_name)
    return model.eval()


class _Normalisation:
    """(pixels / 255 − mean) / std, float32; a class, because workers that read patches pickle it."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if image.dtype != np.uint8:
            raise ValueError(
                f"the patch is {image.dtype}; expected uint8 pixels that have not been normalised"
            )
        return (image[..., :3].astype(np.float32) / 255 - self.mean) / self.std


def _vanilla() -> Any:
    try:
        from tiatoolbox.models.architecture import vanilla

        if not hasattr(vanilla, "timm_arch_dict"):
            raise ImportError("no timm_arch_dict")
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return vanilla
