"""A pytest plugin that turns timm's own suite onto this package's models.

timm's tests take their models from ``timm.list_models`` at collection; here it lists ours. Tests that are bound to
other models, or to none, are dropped, except those of test_model_input.py, which check timm's construction and export
machinery with this package's models registered.
"""

import pytest
import timm

from timm_mvhybrid.models import MODEL_NAMES, TEST_MODEL_NAMES

OURS = [*MODEL_NAMES, *TEST_MODEL_NAMES]


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


def pytest_configure(config):
    timm.list_models = _list_models
    timm.list_pretrained = lambda *args, **kwargs: []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    kept = []
    for item in items:
        if item.path.name == "test_model_input.py":
            kept.append(item)
        elif getattr(item, "callspec", None) is not None and item.callspec.params.get("model_name") in OURS:
            # the models that take 256 px only when asked are traced backwards at that size too
            item.module.MAX_BWD_FX_SIZE = 256
            kept.append(item)
    dropped = [item for item in items if item not in kept]
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept
