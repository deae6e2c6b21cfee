"""`Slide.read_level`: whole pixels of a level, the same through OpenSlide and tiffslide."""

import numpy as np
import openslide
import pytest
from support.generated_slides import write_odd_pyramid

from timm_mvhybrid.data import Slide

CORNERS = [(0, 0), (256, 256), (1001, 701), (-60, 101), (-61, -3), (1190, 890), (2400, 10)]


def _missing(path):
    raise ImportError


@pytest.fixture(params=["openslide", "tiffslide"])
def library(request, monkeypatch):
    if request.param == "tiffslide":
        monkeypatch.setattr("timm_mvhybrid.data.slide_library._openslide", _missing)
    return request.param


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("padding", [(255, 255, 255), (0, 0, 0)])
def test_level_is_read_as_openslide_gives_it(tmp_path, library, corner, level, padding):
    write_odd_pyramid(tmp_path / "odd.svs")
    expected = openslide.OpenSlide(tmp_path / "odd.svs").read_region(corner, level, (120, 110))
    opaque = np.asarray(expected)[..., 3]
    patch = np.asarray(Slide(tmp_path / "odd.svs").read_level(corner, level, (120, 110), padding=padding))
    difference = np.abs(patch.astype(int) - np.asarray(expected.convert("RGB")))
    # OpenSlide weights with 7 bits: of 255 grey levels the weight's rounding moves 1 an axis, and the result's 1
    assert difference[opaque == 255].max(initial=0) <= (0 if library == "openslide" else 3)
    if library == "openslide":
        assert difference[opaque > 0].max(initial=0) == 0
    assert (patch[opaque == 0] == padding).all()
