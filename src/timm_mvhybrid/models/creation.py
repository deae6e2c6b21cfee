"""Name → model, for pipelines that call a function which a configuration file names."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn


def create_model(model_name: str, **kwargs: Any) -> nn.Module:
    """Creates a model as ``timm.create_model`` does, with the models of this package among timm's.

    Some pipelines import a function by its dotted path and check its signature before they call it. To them the path
    ``timm_mvhybrid.create_model`` is both: the function, and the import that registers the models.

    Args:
        model_name: A model of this package or of timm, with a tag (``name.tag``) or without, or ``hf-hub:`` and
            ``local-dir:`` addresses.
        **kwargs: What ``timm.create_model`` takes: ``pretrained``, ``img_size``, ``dynamic_img_size``, ...

    Returns:
        The model; one of this package gives features (batch, embed_dim) unless asked for otherwise.

    Raises:
        RuntimeError: There is no model of this name.
    """
    return timm.create_model(model_name, **kwargs)
