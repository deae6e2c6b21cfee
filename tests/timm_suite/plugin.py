"""A pytest plugin that turns timm's own suite onto this package's models.

timm's tests take their models from ``timm.list_models`` at collection; here it lists ours. Tests of test_models.py
that are bound to other models, or to none, are dropped. test_model_input.py names no models to list: most of it builds
a small ViT by a helper, which here builds ours; what it builds by name stays timm's.
"""

import functools
import os

import pytest
import timm

from timm_mvhybrid.models import MODEL_NAMES, TEST_MODEL_NAMES, TINY_MODEL_NAMES

# the tiny backbones have the blocks of the small ones, in a third of the time
_SHORT = os.environ.get("TIMM_SUITE") == "short"
OURS = [*(TINY_MODEL_NAMES if _SHORT else MODEL_NAMES), *TEST_MODEL_NAMES]


def _mentions_vit(filters):
    patterns = [filters] if isinstance(filters, str) else list(filters or ())
    return "vit_*" in patterns


def _list_models(filter="", module="", pretrained=False, exclude_filters="", **options):
    """Lists our models: as non-standard transformers, as timm's own ViTs are, and never as convolutional ones."""
    if pretrained or _mentions_vit(exclude_filters):
        return []
    if filter and not _mentions_vit(filter):
        return []
    return list(OURS)


def _our_vit(timms_vit, **options):
    """Builds our model where test_model_input.py builds a small ViT of timm's: fixed size, with a head.

    NaFlex, a class of its own that timm's ViTs can turn into, is not among our options.
    """
    if options.get("use_naflex"):
        return timms_vit(**options)
    defaults = dict(
        img_size=(32, 48), embed_dim=32, depth=2, num_heads=4, num_classes=1000, dynamic_img_size=False
    )
    return timm.create_model("test_mvhybrid", **{**defaults, **options})


def pytest_configure(config):
    timm.list_models = _list_models
    timm.list_pretrained = lambda *args, **kwargs: []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    kept = []
    for item in items:
        if item.path.name == "test_model_input.py":
            if not isinstance(item.module._vit, functools.partial):
                item.module._vit = functools.partial(_our_vit, item.module._vit)
            kept.append(item)
        elif getattr(item, "callspec", None) is not None and item.callspec.params.get("model_name") in OURS:
            # the models that take 256 px only when asked are traced backwards at that size too
            item.module.MAX_BWD_FX_SIZE = 256
            kept.append(item)
    dropped = [item for item in items if item not in kept]
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept
