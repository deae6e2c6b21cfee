"""The example of bands runs, and each reference sees what it was built to see."""

import math
import runpy
import sys
from pathlib import Path

import pytest

from timm_mvhybrid.report import read_result

EXAMPLE = Path(__file__).parents[1] / "examples" / "bands_phantom.py"
STUDIES, SPOTS = 4, 36
BANDS = ("1-2 cycles", "2-4 cycles", "4-8 cycles", "8-16 cycles")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bands")
    arguments = [
        "--output",
        folder,
        "--models",
        "test_vit12",
        "--studies",
        STUDIES,
        "--samples",
        1,
        "--spots",
        SPOTS,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments), "--genes", "20"])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return read_result(folder / "report")


def test_references_see_their_bands_and_no_others(found):
    """A correlation of nothing scatters by 1/√spots in a study, and all genes of a band share the draw."""
    assert found.provenance.generated
    nothing = 5 / math.sqrt(STUDIES * SPOTS)
    for model, seen in (
        ("oracle", BANDS),
        ("spectrum", BANDS),
        ("low-pass", BANDS[:2]),
        ("high-pass", BANDS[2:]),
        ("baseline:colour", ()),
    ):
        for band in (*BANDS, "none"):
            mean = found.summary(model, "loso", f"pcc:{band}").mean
            # five deviations apart from nothing, too
            assert mean > nothing if band in seen else abs(mean) < nothing, (model, band, mean)


def test_models_are_scored_in_every_band(found):
    for protocol in ("random", "loso"):
        for band in (*BANDS, "none"):
            summary = found.summary("test_vit12", protocol, f"pcc:{band}")
            assert -1 <= summary.interval.low <= summary.mean <= summary.interval.high <= 1
