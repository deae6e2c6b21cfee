"""The bar of tiles over all slides: on a terminal with what remains, and nothing where there is none."""

import io

from rich.console import Console

from timm_mvhybrid.cli.cohort_display import CohortDisplay
from timm_mvhybrid.embed.engine_calls import EngineReport
from timm_mvhybrid.embed.slide_cohort import SlideRecord

REPORT = EngineReport(tiles_done=300, tiles_known=1000, slides_opened=2, slides_left=6, seconds=10.0)
DONE = SlideRecord(slide_id="b", path="/b.svs", state="done", tiles=500, seconds=4.5)
FAILED = SlideRecord(slide_id="a", path="/a.svs", state="failed", error="a.svs: give `slide`", seconds=0.1)


def shown(terminal, quiet=False):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, color_system=None, legacy_windows=False)
    with CohortDisplay(8, quiet=quiet, console=console) as display:
        display.update(REPORT)
        display.end(DONE)
        display.end(FAILED)
    return file.getvalue(), display


def test_a_terminal_has_a_bar_of_all_tiles_and_a_line_a_slide():
    text, display = shown(True)
    assert "1/8 b: 500 tiles, 4.5 s" in text
    assert "2/8 a: failed: a.svs: give `slide`, 0.1 s" in text
    # six more slides like the two that were opened
    assert "300 of about 4,000 tiles, 30.0 tiles/s" in text
    (task,) = display._bar.tasks
    assert (task.completed, task.total) == (300, 4000)


def test_elsewhere_nothing_is_shown():
    assert shown(False)[0] == shown(True, quiet=True)[0] == ""


def test_warnings_of_slides_and_patches_are_said_in_any_case(capsys):
    with CohortDisplay(1, console=Console(file=io.StringIO())) as display:
        display.update(
            EngineReport(
                tiles_done=1, tiles_known=1, slides_opened=1, slides_left=0, seconds=1, errors=("x",)
            )
        )
        display.end(SlideRecord(slide_id="a", path="/a", state="done", warnings=("coarse",)))
    assert capsys.readouterr().err == "warning: skipped x\nwarning: coarse\n"
