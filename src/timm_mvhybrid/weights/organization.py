"""Where the weights are published: model and tag → repository, in an organisation that is named only here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from timm.models import _registry

from ..runtime.errors import ParameterError

DEFAULT_ORGANIZATION = "timm-mvhybrid"
ENVIRONMENT_VARIABLE = "TIMM_MVHYBRID_ORGANIZATION"

_chosen: str | None = None


def organization() -> str:
    """Returns the organisation or user whose repositories ``pretrained=True`` downloads from.

    The choice of ``set_organization`` comes first, then the environment variable TIMM_MVHYBRID_ORGANIZATION, then
    "timm-mvhybrid".
    """
    return _chosen or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_ORGANIZATION


def set_organization(name: str | None) -> None:
    """Chooses the organisation or user whose repositories ``pretrained=True`` downloads from, from now on.

    Args:
        name: Its name on the Hub; None for the environment variable's or the default.

    Raises:
        ParameterError: It cannot be an organisation's name.
    """
    global _chosen
    if name is not None and not re.fullmatch(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?", name):
        raise ParameterError(
            f"`name` is '{name}', which cannot be an organisation on the Hub; give its name alone, without a slash"
        )
    _chosen = name
    update_registry()


def follow(default_cfgs: Mapping[str, Any]) -> None:
    """Keeps the repositories of these configurations in the chosen organisation."""
    _followed.update(default_cfgs)
    update_registry()


def update_registry() -> None:
    """Writes the chosen organisation into the followed configurations and timm's copies of them."""
    for architecture, default in _followed.items():
        for tag, config in default.cfgs.items():
            before, config.hf_hub_id = config.hf_hub_id, f"{organization()}/{architecture}.{tag}"
            for name in (architecture, f"{architecture}.{tag}"):
                registered = _registry._model_pretrained_cfgs.get(name)
                if registered is not None and registered.hf_hub_id == before and registered.tag == tag:
                    registered.hf_hub_id = config.hf_hub_id


_followed: dict[str, Any] = {}
