"""The map over a slide: what the page keeps of values, and what a browser shows of it."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image
from support import chromium

from timm_mvhybrid.report.page import page, section
from timm_mvhybrid.report.slide_map import PART, SlideMap, quantised, slide_map_section

in_a_browser = pytest.mark.skipif(chromium.BROWSER is None, reason=chromium.MISSING)


def values_of(kept, num):
    found = np.full(num, np.inf if kept["low"] is None else kept["low"])
    if "levels" in kept:
        found += kept["step"] * np.frombuffer(base64.b64decode(kept["levels"]), np.uint8)
    return found


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_values_are_kept_within_half_a_level(scale):
    values = scale * np.random.default_rng(0).normal(size=1000)
    kept = quantised(values.astype(np.float32))
    error = np.abs(values_of(kept, 1000) - values)
    # half of 1/255 of the range, and what float32 rounded
    assert error.max() <= np.ptp(values) / 510 + 2**-23 * np.abs(values).max()
    assert error.max() > np.ptp(values) / 600
    json.dumps(kept, allow_nan=False)


@pytest.mark.parametrize("values", [[2.5, 2.5], [2.5, 2.5000002], [0.0, 0.0], [-1.0]])
def test_values_that_are_the_same_are_kept_as_one(values):
    assert quantised(np.array(values)) == {"low": values[0], "step": 0}


@pytest.mark.parametrize("values", [[np.inf, np.inf], [1.0, np.inf], [-np.inf]])
def test_infinite_bounds_are_null(values):
    assert quantised(np.array(values)) == {"low": None, "step": 0}


def slide_map(*, side=10, num_genes=6, measured=False):
    """A square of patches of 100 px, 10 px apart from the corner; the first gene rises to the right, none else."""
    rng = np.random.default_rng(0)
    column, row = (axis.ravel() for axis in np.meshgrid(np.arange(side), np.arange(side)))
    mean = rng.normal(size=(side * side, num_genes)).astype(np.float32)
    mean[:, 0] = column
    r = np.linspace(0.8, -0.1, num_genes)
    return SlideMap(
        picture=np.full((side * 50 + 10, side * 50 + 10, 3), 255, np.uint8),
        dimensions_px=(side * 100 + 20, side * 100 + 20),
        corners=np.stack([column, row], 1) * 100.0 + 10,
        cell_px=100.0,
        genes=["TO THE RIGHT", *(f"GENE{index}" for index in range(1, num_genes - 1)), "</script><b>"],
        columns=np.arange(num_genes),
        mean=mean,
        lower=mean - 1,
        upper=mean + 2,
        r=r,
        r_lower=r - 0.2,
        r_upper=r + 0.1,
        predictable=r > 0.2,
        distance=np.linspace(0, 2, side * side).astype(np.float32),
        far=row == 0,
        measured=mean + 0.5 if measured else None,
        r_note="(95 % interval)",
    )


def write(folder, shown):
    folder.mkdir(exist_ok=True)
    file = folder / "index.html"
    text = page(
        title="A slide",
        lead="drawn",
        warnings=[],
        notes=[],
        sections=[section("Map", slide_map_section(shown))],
        provenance={},
        parts=[PART],
    )
    file.write_text(text, encoding="utf-8")
    return file


def test_the_page_is_one_file_without_outside_resources(tmp_path):
    text = write(tmp_path, slide_map()).read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/2000/svg", "", text)
    # the name of a gene ends no script
    assert "</script><b>" not in text


def test_twenty_thousand_patches_and_fifty_genes_fit_a_page():
    rng = np.random.default_rng(0)
    num, num_genes = 20_000, 50
    small = slide_map(num_genes=2)
    mean = rng.normal(size=(num, num_genes)).astype(np.float32)
    shown = dataclasses.replace(
        small,
        corners=rng.uniform(0, 1000, (num, 2)),
        genes=[f"G{index}" for index in range(num_genes)],
        columns=np.arange(num_genes),
        mean=mean,
        lower=mean - 1,
        upper=mean + 1,
        **{name: np.zeros(num_genes) for name in ("r", "r_lower", "r_upper")},
        predictable=np.ones(num_genes, bool),
        distance=np.zeros(num, np.float32),
        far=np.zeros(num, bool),
    )
    constant = len(slide_map_section(shown))
    wavy = dataclasses.replace(
        shown, lower=mean - rng.uniform(1, 2, mean.shape).astype(np.float32), upper=mean + 1
    )
    # a byte a value, 4/3 of it in base64, and 8 bytes for a corner
    assert constant < num * (num_genes + 8 + 1) * 4 / 3 + 30_000
    assert len(slide_map_section(wavy)) < num * (2 * num_genes + 8 + 1) * 4 / 3 + 30_000


SCRIPT = """
const at = (name) => document.getElementById(name);
const shown = () => [...at("gene-list").options].map((one) => one.text);
const fire = (element, kind) => element.dispatchEvent(new Event(kind, { bubbles: true }));
const view = (name) => { const one = document.querySelector(`[name="map-view"][value="${name}"]`); one.checked = true; fire(one, "change"); };
const read = (canvas, x, y, side) => {
  const made = at(canvas), ratio = made.width / 1020, copy = document.createElement("canvas"), wanted = Math.max(Math.round(side * ratio), 1);
  copy.width = copy.height = wanted;
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(made, -Math.round(x * ratio), -Math.round(y * ratio));
  return [...context.getImageData(0, 0, wanted, wanted).data];
};
const pixel = (canvas, x, y) => read(canvas, x, y, 0);
const spread = (x, y) => {
  const alpha = read("map-lines", x, y, 80).filter((_, index) => index % 4 === 3);
  return alpha.filter((one) => one > 0).length / alpha.length;
};
const key = (code) => at("map-lines").dispatchEvent(new KeyboardEvent("keydown", { key: code, bubbles: true, cancelable: true }));
const result = { genes: shown(), first: at("gene-list").value, label: at("map-lines").getAttribute("aria-label") };
result.left = pixel("map-colours", 60, 560); result.middle = pixel("map-colours", 560, 560); result.right = pixel("map-colours", 960, 560);
result.outside = pixel("map-colours", 4, 4);
result.hatched = spread(120, 20); result.plain = spread(120, 320);
at("map-hatch").click(); result.unhatched = spread(120, 20); at("map-hatch").click();
result.reliability = at("map-reliability").innerText;
result.key = at("map-key").innerText;
view("lower"); result.lower = at("map-key").innerText;
view("width"); result.width = at("map-key").innerText; result.flat = [pixel("map-colours", 60, 560), pixel("map-colours", 960, 560)];
view("mean"); at("map-shared").click(); result.shared = at("map-key").innerText; at("map-shared").click();
key("ArrowRight"); result.readout = at("map-readout").innerText;
key("ArrowRight"); key("ArrowDown"); result.moved = at("map-readout").innerText;
key("ArrowLeft"); key("ArrowUp"); result.returned = at("map-readout").innerText === result.readout;
const box = at("map-lines").getBoundingClientRect();
at("map-lines").dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width * 960 / 1020, clientY: box.top + box.height * 960 / 1020 }));
result.pointed = at("map-readout").innerText;
at("map-opacity").value = 20; fire(at("map-opacity"), "input"); result.opacity = getComputedStyle(at("map-colours")).opacity;
at("gene-all").click(); result.everything = shown(); result.doubtful = [...at("gene-list").options].filter((one) => one.className === "doubtful").length;
at("gene-search").value = "gene2"; fire(at("gene-search"), "input"); result.searched = shown(); result.chosen = at("gene-list").value;
result.label2 = at("map-lines").getAttribute("aria-label");
at("gene-search").value = ""; fire(at("gene-search"), "input");
at("gene-list").value = "<\\/script><b>"; fire(at("gene-list"), "change"); result.doubt = at("map-reliability").innerText;
const before = at("map-layers").clientWidth; at("map-in").click(); result.zoom = at("map-layers").clientWidth / before;
at("map-out").click(); result.out = at("map-out").disabled; result.count = at("gene-count").innerText;
"""


@in_a_browser
def test_map_choosers_and_keys_work_in_a_browser(tmp_path):
    found, console = chromium.probe(write(tmp_path / "page", slide_map()), tmp_path / "profile", SCRIPT)
    assert console == []
    # those that cannot be predicted are off
    assert found["genes"] == ["TO THE RIGHT · 0.80", "GENE1 · 0.62", "GENE2 · 0.44", "GENE3 · 0.26"]
    assert found["first"] == "TO THE RIGHT"
    assert "TO THE RIGHT, prediction, on 100 patches of the slide, 10 of them far" in found["label"]
    # the ends of viridis, and between
    assert found["left"] == [68, 1, 84, 255]
    assert found["right"] == [253, 231, 37, 255]
    assert found["middle"] not in (found["left"], found["right"])
    assert found["outside"][3] == 0
    assert 0.3 < found["hatched"] < 1
    assert found["plain"] == found["unhatched"] == 0
    assert "r 0.80, 0.60 to 0.90 (95 % interval)" in found["reliability"]
    assert found["key"].split() == ["0.00", "9.00", "log1p", "counts"]
    assert found["lower"].split()[:2] == ["−1.00", "8.00"]
    # the same interval at every patch has no scale
    assert found["width"] == "3.00 log1p counts everywhere"
    assert found["flat"][0] == found["flat"][1]
    assert found["shared"].split()[:2] == ["−1.00", "11.00"]
    assert found["readout"].startswith(
        "TO THE RIGHT at x 60, y 60 px: 0.00, from −1.00 to 2.00 log1p counts; distance"
    )
    assert found["readout"].endswith("0.00, far")
    assert found["moved"].startswith(
        "TO THE RIGHT at x 160, y 160 px: 0.99, from −0.01 to 2.99"
    )  # within 9 / 510
    assert found["returned"]
    assert found["pointed"].startswith("TO THE RIGHT at x 960, y 960 px: 9.00, from 8.00 to 11.00")
    assert float(found["opacity"]) == pytest.approx(0.2)
    assert len(found["everything"]) == 6
    assert found["everything"][-1] == "⚠ </script><b> · −0.10"
    assert found["doubtful"] == 2
    assert found["searched"] == ["GENE2 · 0.44"]
    assert found["chosen"] == "GENE2"
    assert found["label2"].startswith("GENE2,")
    assert "cannot be predicted: the interval includes 0" in found["doubt"]
    assert found["zoom"] == pytest.approx(2, rel=0.01)
    assert found["out"]
    assert found["count"] == "6 of 6 genes"


@in_a_browser
def test_what_was_measured_is_a_view_and_infinite_bounds_are_shown(tmp_path):
    shown = slide_map(measured=True)
    shown = dataclasses.replace(shown, upper=np.full_like(shown.upper, np.inf))
    script = """
    const view = (name) => { const one = document.querySelector(`[name="map-view"][value="${name}"]`); one.click(); };
    const result = {};
    view("measured"); result.key = document.getElementById("map-key").innerText;
    view("upper"); document.getElementById("map-lines").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp" }));
    result.readout = document.getElementById("map-readout").innerText;
    """
    found, console = chromium.probe(write(tmp_path / "page", shown), tmp_path / "profile", script)
    assert console == []
    assert found["key"].split()[:2] == ["0.50", "9.50"]
    assert "0.00, from −1.00 to ∞ log1p counts, measured 0.50" in found["readout"]


@in_a_browser
def test_the_screenshot_shows_the_map_in_colour(tmp_path):
    file = write(tmp_path / "page", slide_map())
    picture = tmp_path / "page.png"
    _, console = chromium.run(file, tmp_path / "profile", f"--screenshot={picture}")
    assert console == []
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    # 75 % of the first colour over white paper, on more than 1 % of the page
    mixed = np.rint(0.75 * np.array([68, 1, 84]) + 0.25 * 255)
    assert (np.abs(pixels - mixed).max(axis=1) <= 2).mean() > 0.01
