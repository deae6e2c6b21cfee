"""The report's page in a browser: no console message, every plot drawn, sorting, themes and the choice of maps."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from support import chromium, results

from timm_mvhybrid.report import compare_reports, write_report

pytestmark = pytest.mark.skipif(chromium.BROWSER is None, reason=chromium.MISSING)

PLOTS = {
    "expression": {"slope", "genes-random", "genes-loso", "maps"},
    "classification": {"confusion-vit12-linear", "confusion-vit12-knn"},
    "retrieval": {"retrieval"},
    "slides": {"roc"},
    "survival": {"survival-vit12"},
}


# texts that are not turned: boxes of their letters that meet, or leave the picture by more than 2 px
OVERLAPS = """
const result = { texts: 0, overlaps: [], outside: [] };
for (const svg of document.querySelectorAll("figure svg")) {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].filter((text) => !text.hasAttribute("transform"));
  const boxes = texts.map((text) => [text.textContent, text.getBoundingClientRect()]);
  result.texts += boxes.length;
  boxes.forEach(([name, box], index) => {
    if (box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2 || box.bottom > frame.bottom + 2)
      result.outside.push(name);
    for (const [other, its] of boxes.slice(index + 1)) {
      // letters fill about the middle two thirds of a line's height
      const across = Math.min(box.right, its.right) - Math.max(box.left, its.left);
      const down = Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top);
      if (across > 0 && down > box.height / 3) result.overlaps.push(`${name} | ${other}`);
    }
  });
}
"""


@pytest.mark.parametrize("make", results.ALL_TASKS, ids=lambda make: make.__name__)
def test_every_plot_is_drawn_and_the_console_is_silent(tmp_path, make):
    page = write_report(make(), tmp_path / "report")
    figures, console = chromium.probe(page, tmp_path / "profile", chromium.MEASURE)
    assert console == []
    chromium.assert_drawn(figures, PLOTS[make.__name__])


def test_texts_keep_apart_and_within_their_picture(tmp_path):
    names = ("mvhybrid_small_patch16_256", "hf-hub:organisation/some_model_of_a_long_name", "c", "WWWWWWWWWW")
    result = results.expression(names + tuple(f"model_{index}" for index in range(8)), num_genes=12)
    # all end at almost the same value, where their labels would stand on each other
    summaries = tuple(
        dataclasses.replace(one, mean=0.2 + 0.001 * index) if one.protocol == "loso" else one
        for index, one in enumerate(result.summaries)
    )
    found = []
    for made in (
        dataclasses.replace(result, summaries=summaries),
        results.classification(),
        results.survival(),
    ):
        page = write_report(made, tmp_path / made.task)
        shown, console = chromium.probe(page, tmp_path / "profile", OVERLAPS)
        assert console == []
        assert shown["texts"] > 10
        found += shown["overlaps"] + shown["outside"]
    assert found == []


def test_a_script_that_fails_is_noticed(tmp_path):
    page = write_report(results.retrieval(), tmp_path / "report")
    page.write_text(page.read_text().replace('"use strict";', '"use strict"; setTimeout(() => missing());'))
    _, console = chromium.run(page, tmp_path / "profile", "--dump-dom")
    assert any("missing is not defined" in line for line in console)


def test_tables_sort_maps_change_and_the_theme_switches(tmp_path):
    for name in ("a", "b"):
        write_report(results.expression((name,), num_genes=4), tmp_path / name)
    comparison = compare_reports([tmp_path / "a", tmp_path / "b"], tmp_path / "compared")
    page = write_report(results.expression(num_genes=6), tmp_path / "report")
    script = """
    const cells = (column) => [...document.querySelectorAll("#table-genes tbody tr")].map((row) => row.cells[column].innerText);
    const head = (column) => document.querySelectorAll("#table-genes thead button")[column];
    const panels = () => [...document.querySelectorAll("#map-panels h3")].map((title) => title.innerText);
    const spots = () => [...document.querySelectorAll("#map-panels circle")].map((spot) => spot.getAttribute("fill")).join();
    // numbers that text would sort otherwise, and one that does not exist
    ["10", "9", "-0.5"].forEach((value, row) => {
      const cell = document.querySelectorAll("#table-genes tbody tr")[row].cells[1];
      cell.innerText = cell.dataset.value = value;
    });
    const gone = document.querySelectorAll("#table-genes tbody tr")[3].cells[1];
    gone.innerText = "–"; delete gone.dataset.value;
    const result = { before: cells(1), theme: document.documentElement.dataset.theme };
    head(1).click(); result.descending = cells(1); result.state = head(1).parentElement.getAttribute("aria-sort");
    head(1).click(); result.ascending = cells(1);
    head(0).click(); result.names = cells(0);
    const first = spots();
    document.getElementById("map-next").click(); const second = spots();
    document.getElementById("map-previous").click(); result.returned = spots() === first; result.changed = second !== first;
    document.getElementById("map-own").click(); result.stretched = spots() !== first;
    result.gene = document.getElementById("map-gene").value; result.panels = panels();
    const colour = getComputedStyle(document.body).backgroundColor;
    document.getElementById("theme").click();
    result.dark = document.documentElement.dataset.theme; result.repainted = getComputedStyle(document.body).backgroundColor !== colour;
    """
    found, console = chromium.probe(page, tmp_path / "profile", script)
    assert console == []
    assert found["before"][:4] == ["10", "9", "-0.5", "–"]
    numbers = sorted(float(text) for text in found["before"] if text != "–")
    assert found["descending"][-1] == found["ascending"][-1] == "–"
    assert [float(text) for text in found["descending"][:-1]] == numbers[::-1]
    assert [float(text) for text in found["ascending"][:-1]] == numbers
    assert found["state"] == "descending"
    assert found["names"] == [f"GENE{index}" for index in range(6)]
    assert found["changed"]
    assert found["returned"]
    assert found["stretched"]
    assert found["gene"] == "GENE0"
    assert found["panels"] == ["Measured", "mvhybrid", "vit12"]
    assert (found["theme"], found["dark"]) == ("light", "dark")
    assert found["repainted"]
    figures, console = chromium.probe(comparison, tmp_path / "profile", chromium.MEASURE)
    assert console == []
    chromium.assert_drawn(figures, {"slope"})


def test_the_screenshot_shows_plots_in_colour(tmp_path):
    page = write_report(results.expression(), tmp_path / "report")
    picture = tmp_path / "page.png"
    _, console = chromium.run(page, tmp_path / "profile", f"--screenshot={picture}")
    assert console == []
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    # the two series' colours, as many pixels as bars and lines take
    for colour in ((0, 114, 178), (213, 94, 0)):
        assert (pixels == colour).all(1).sum() > 2000
