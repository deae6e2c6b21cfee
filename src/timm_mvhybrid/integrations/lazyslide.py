"""Our backbones as models of lazyslide: slide → features of its tiles, and of the 16 px squares within them.

lazyslide takes any timm model by name, so ``import timm_mvhybrid`` before the call is enough::

    import lazyslide as zs
    import timm_mvhybrid.integrations.lazyslide
    from wsidata import open_wsi

    timm_mvhybrid.integrations.lazyslide.register()
    wsi = open_wsi("slide.svs")
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, 256, mpp=0.5)
    zs.tl.feature_extraction(wsi, "mvhybrid_small_patch16_256", dense=True)

By plain name, though, lazyslide silently ignores ``model_path=`` and loads published weights, resizes the tiles to
256 px whatever ``img_size`` says unless ``dense=True``, and takes the whole path of an exported folder for the name of
a table. ``register`` puts the backbones into lazyslide's own list, beside "uni" and "virchow", where all of that works.
lazyslide 0.13 or later, which needs Python 3.11.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..models import MODEL_NAMES, load_weights
from ..models.creation import checked_name

__all__ = ["register"]

_PAPER = "https://arxiv.org/abs/2508.00383"


def register() -> tuple[str, ...]:
    """Adds the six backbones to lazyslide's models; a second call has no effect.

    ``zs.tl.feature_extraction(wsi, name, ...)`` then takes these arguments for a model: ``model_path``, a file of
    weights of this package or a folder that ``timm-mvhybrid export`` wrote, instead of the published weights;
    ``load_kws``, arguments of ``timm.create_model`` such as ``pretrained`` and ``img_size``, to which the tiles are
    resized; ``token``; ``dense`` and ``pool_mode``.

    Raises:
        ImportError: lazyslide is not installed, or too old.
    """
    try:
        models: Any = import_module("lazyslide_models")
    except ImportError as error:
        raise ImportError(
            f"lazyslide's models cannot be imported ({error}); pip install 'lazyslide>=0.13' (Python 3.11 or later)"
        ) from error
    for name in MODEL_NAMES:
        if name not in models.MODEL_REGISTRY:
            models.register(
                key=name,
                task=models.ModelTask.vision,
                license="Apache-2.0",
                commercial=True,
                description="State-space and vision-transformer hybrid for H&E patches of 256 px at 0.5 µm/px",
                paper_url=_PAPER,
                encode_dim=384,
            )(_model_class(models.TimmViTModel, name))
    return MODEL_NAMES


def _model_class(base: type[Any], architecture: str) -> type[Any]:
    """Makes lazyslide's class of one backbone; lazyslide calls it with ``model_path``, ``token`` and ``load_kws``."""

    class Backbone(base):
        def __init__(
            self, model_path: str | Path | None = None, token: str | None = None, **kwargs: Any
        ) -> None:
            name, file = _weights(model_path, architecture)
            unpretrained = {"pretrained": False} if file is not None else {}
            super().__init__(**{"name": name, "token": token, **unpretrained, **kwargs})
            if file is not None:
                load_weights(self.model, file)
            found = self.model.default_cfg["architecture"]
            if found != architecture:
                raise ValueError(
                    f"{model_path} holds the backbone '{found}', not '{architecture}'; give its own name to lazyslide"
                )

        @property
        def name(self) -> str:
            return architecture

    Backbone.__name__ = Backbone.__qualname__ = architecture
    return Backbone


def _weights(model_path: str | Path | None, architecture: str) -> tuple[str, Path | None]:
    """Returns timm's name of the model that ``model_path`` stands for, and the file of its weights, if it is a file."""
    if model_path is None:
        return architecture, None
    path = Path(model_path)
    if path.is_dir():
        return checked_name(f"local-dir:{path}"), None
    if not path.exists():
        raise FileNotFoundError(
            f"model_path is {model_path}: no such file or folder; give weights of {architecture}, or the folder that "
            "'timm-mvhybrid export' wrote"
        )
    return architecture, path
