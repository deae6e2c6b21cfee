"""Statistics of colour of patches whose colours are known."""

import numpy as np
import pytest

from timm_mvhybrid.embed.colour_statistics import NAMES, colour_statistics


def test_there_are_22_and_a_plain_patch_has_no_contrast():
    patch = np.empty((40, 56, 3), np.uint8)
    patch[:] = (51, 102, 204)
    found = dict(zip(NAMES, colour_statistics(patch), strict=True))
    assert len(found) == 22
    assert [found[f"{name} mean"] for name in ("red", "green", "blue")] == pytest.approx([0.2, 0.4, 0.8])
    assert found["red p10"] == found["red p90"] == pytest.approx(0.2)
    assert found["density mean"] == pytest.approx(-np.log(7 / 15), rel=1e-6)
    assert found["saturation"] == pytest.approx(0.6)
    assert found["hue x"] == pytest.approx(0.2 - 0.6)
    assert found["hue y"] == pytest.approx(-0.4 * np.sqrt(3) / 2)
    flat = [name for name in NAMES if "deviation" in name or "gradient" in name]
    assert [found[name] for name in flat] == pytest.approx([0] * len(flat), abs=1e-7)


def test_a_turned_patch_has_the_same_statistics():
    patch = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(colour_statistics(np.rot90(patch)), colour_statistics(patch), rtol=1e-5)
