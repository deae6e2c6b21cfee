"""Charts against numbers computed by hand: what was drawn is read back from the picture."""

import dataclasses
import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from support import results

from timm_mvhybrid.evaluate.expression.charts import apart, gene_bars, slope_chart
from timm_mvhybrid.evaluate.expression.tables import find_drops
from timm_mvhybrid.evaluate.labelled_patches import confusion_matrix, precision_bars
from timm_mvhybrid.evaluate.slide_bags import roc_curves, survival_curves
from timm_mvhybrid.probes.cox import log_rank_p_value

pytestmark = pytest.mark.fixed_seed  # results are drawn, and what is asserted names the best of them

PX = 0.02
"""Positions are written in hundredths of a px; a difference of two has at most twice half of that."""


def shapes(svg, classes):
    """Elements of exactly these classes."""
    return [element for element in ElementTree.fromstring(svg) if element.get("class") == classes]


def notes(elements):
    return [element.findtext("title") for element in elements]


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg) if element.tag == "text"]


def points(path):
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d"))]


def scale(svg, direction):
    """Reads an axis from 0 to 1 off the picture: px → value."""
    index = "xy".index(direction)
    places = {}
    for tick in shapes(svg, "tick"):
        if tick.text in ("0", "1") and (tick.get("text-anchor") == "end") == (direction == "y"):
            places[tick.text] = tick
    lines = [
        points(line)[0][index]
        for line in shapes(svg, "grid") + shapes(svg, "zero")
        if len({point[index] for point in points(line)}) == 1
    ]
    low, high = (
        min(lines, key=lambda place: abs(place - float(places[end].get(direction)))) for end in ("0", "1")
    )
    return lambda px: (px - low) / (high - low)


def with_patients(times, events):
    return [
        {"time": float(time), "event": event, "high_risk": False}
        for time, event in zip(times, events, strict=True)
    ]


def slopes(result, drops=None):
    metrics = {name: metric for name, metric in result.metrics.items() if name != "r2"}
    return slope_chart(
        find_drops(result) if drops is None else drops, [model.label for model in result.models], metrics
    )


def test_kaplan_meier_curve_of_freireich_s_patients():
    # Freireich et al., Blood 21 (1963): remission in weeks under 6-mercaptopurine, in every textbook
    events = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    censored = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    svg = survival_curves("vit12", with_patients(events + censored, [True] * 9 + [False] * 12), "weeks")
    curve = next(shape for shape in shapes(svg, "colour-0 series") if shape.find("title") is not None)
    up = scale(svg, "y")
    heights = list(dict.fromkeys(y for _, y in points(curve)))
    expected = [1, 0.8571, 0.8067, 0.7529, 0.6902, 0.6275, 0.5378, 0.4482]
    assert [up(y) for y in heights] == pytest.approx(expected, abs=PX / 230 + 5e-5)
    assert curve.findtext("title") == "low risk: 21 patients, median 23, 0.45 at the end"
    # those censored at the time of an event are still at risk, and stand on the curve after it
    ticks = shapes(svg, "colour-0 series censored")
    assert len(ticks) == 12
    places = [tuple(map(float, re.findall(r"[\d.]+", tick.get("transform")))) for tick in ticks]
    assert [round(up(y), 3) for _, y in places[:3]] == [0.857, 0.807, 0.753]


def test_survival_curves_count_those_at_risk_and_show_the_test():
    patients = results.survival().arrays["patients"]
    svg = survival_curves("vit12", patients, "months")
    censored = sum(not patient["event"] for patient in patients)
    drawn = shapes(svg, "colour-0 series censored") + shapes(svg, "colour-1 series dash-1 censored")
    assert len(drawn) == censored
    p_value = log_rank_p_value(
        *([patient[name] for patient in patients] for name in ("event", "time", "high_risk"))
    )
    assert {f"log-rank p = {p_value:.2g}", "time, months", "low risk", "high risk"} <= set(texts(svg))
    # at time 0 every patient of both groups is at risk
    assert texts(svg).count("20") == 2


def test_a_median_that_is_not_reached_is_said():
    svg = survival_curves("vit12", with_patients([1, 2, 3], [False] * 3), "")
    assert "median not reached, 1.00 at the end" in svg
    # exactly one half survives the twelfth, but the product of the fractions is 0.5000000000000001
    assert "median 12, 0.00 at the end" in survival_curves(
        "vit12", with_patients(range(1, 25), [True] * 24), ""
    )


def with_slides(pairs):
    return {"vit12": [{"score": score, "positive": positive} for score, positive in pairs]}


def test_roc_with_ties_makes_slanted_pieces():
    svg = roc_curves(with_slides([(0.9, True), (0.5, True), (0.5, False), (0.1, False)]))
    curve = shapes(svg, "colour-0 series")[0]
    across, up = scale(svg, "x"), scale(svg, "y")
    drawn = [(across(x), up(y)) for x, y in points(curve)]
    for found, expected in zip(drawn, [(0, 0), (0, 0.5), (0.5, 1), (1, 1)], strict=True):
        assert found == pytest.approx(expected, abs=PX / 320)
    # 3 of 4 pairs in order, one tied
    assert curve.findtext("title") == "vit12: AUROC 0.875 of 4 slides together"


def test_roc_needs_both_classes_and_finite_scores():
    assert roc_curves(with_slides([(0.9, True), (0.5, True)])) is None
    svg = roc_curves(with_slides([(0.9, True), (0.5, False), (math.nan, True)]))
    assert "AUROC 1.000 of 2 slides" in svg
    assert roc_curves(with_slides([(math.nan, True), (0.5, False)])) is None


def test_slope_chart_draws_every_model_and_names_the_drop():
    result = results.expression()
    svg = slopes(result)
    for series in (0, 1):
        # one line in each of four panels, a marker at each end and one in the legend
        assert len(shapes(svg, f"colour-{series} series")) == 4
        assert len(shapes(svg, f"colour-{series} marker")) == 4 * 2 + 1
    for drop in find_drops(result):
        assert f"{drop.loso:.3f} ({drop.percent:.0f} %)" in texts(svg)
    assert slopes(result, []) is None


def test_slope_chart_says_where_a_drop_does_not_exist():
    result = results.expression(labels=("a",))
    drops = [dataclasses.replace(drop, random=-0.1, percent=None) for drop in find_drops(result)]
    assert "drop undefined" in slopes(result, drops)


def test_slope_chart_leaves_out_what_is_not_a_number():
    result = results.expression(labels=("a", "b"))
    drops = [
        dataclasses.replace(drop, **({"random": math.nan} if drop.model == "a" else {"loso": math.nan}))
        for drop in find_drops(result)
    ]
    svg = slopes(result, drops)
    assert len(shapes(svg, "colour-0 series")) == 0
    assert len(shapes(svg, "colour-0 marker")) == 4 + 1
    assert len(shapes(svg, "colour-1 marker")) == 0 + 1
    assert "nan" not in "".join(element.get("d", "") for element in ElementTree.fromstring(svg))


def test_gene_bars_are_sorted_and_as_high_as_their_mean():
    svg = gene_bars(results.expression(labels=("a",), num_genes=5), "loso", "LOSO")
    bars = [bar for bar in shapes(svg, "colour-0 bar") if bar.find("title") is not None]
    found = [re.fullmatch(r"\w+, a: (-?[\d.]+) ± [\d.]+ over 4 folds", note) for note in notes(bars)]
    values = [float(match[1]) for match in found]
    assert len(values) == 5
    assert values == sorted(values, reverse=True)
    heights = [max(y for _, y in points(bar)) - min(y for _, y in points(bar)) for bar in bars]
    # the notes round to 3 decimals
    assert heights[0] / heights[1] == pytest.approx(values[0] / values[1], rel=0.005)
    assert len(shapes(svg, "whisker")) == 5
    assert gene_bars(results.expression(labels=("a",), num_genes=5), "patient", "by patient") is None


def without_correlation(result, *genes):
    return results.with_scores(
        result, lambda score: score._replace(value=math.nan) if score.unit in genes else score
    )


def test_genes_without_correlation_leave_a_gap():
    result = without_correlation(results.expression(labels=("a",), num_genes=3, num_folds=1), "GENE0")
    svg = gene_bars(result, "random", "random")
    assert [note.split(",")[0] for note in notes(shapes(svg, "colour-0 bar")) if note] == ["GENE2", "GENE1"]
    assert [text.text for text in shapes(svg, "gene")][-1] == "GENE0"
    # one fold has no deviation to show
    assert shapes(svg, "whisker") == []


def test_a_model_keeps_its_colour_where_another_is_missing():
    result = results.expression(labels=("a", "b"))
    summaries = tuple(one for one in result.summaries if (one.model, one.protocol) != ("a", "loso"))
    svg = gene_bars(dataclasses.replace(result, summaries=summaries), "loso", "LOSO")
    assert shapes(svg, "colour-0 bar") == []
    # the genes' bars and the legend's
    assert len(shapes(svg, "colour-1 bar")) == 20 + 1


def test_confusion_matrix_shows_counts_and_fractions_of_each_true_class():
    svg = confusion_matrix("vit12", ["adenoma", "HP & SSA", "normal"], [[16, 4, 0], [2, 18, 0], [0, 6, 14]])
    cells = shapes(svg, "colour-0 bar")
    opacities = {cell.findtext("title"): float(cell.get("fill-opacity", "1")) for cell in cells}
    assert opacities["adenoma taken for HP & SSA: 4 of 20"] == 0.2
    assert len(cells) == len(shapes(svg, "cell")) == 9
    assert "80 %" in texts(svg)
    # the first row stands above the second, the true class at its left
    middle = {note: sum(y for _, y in points(cell)) for note, cell in zip(notes(cells), cells, strict=True)}
    assert middle["adenoma taken for adenoma: 16 of 20"] < middle["normal taken for normal: 14 of 20"]


def test_bars_are_as_high_as_the_precision():
    svg = precision_bars("precision@1", {"vit12": {"ADI": 1.0, "LYM": 0.8, "TUM": 0.6}})
    bars = [bar for bar in shapes(svg, "colour-0 bar") if bar.find("title") is not None]
    assert notes(bars) == [
        "ADI, vit12: precision@1 1.000",
        "LYM, vit12: precision@1 0.800",
        "TUM, vit12: precision@1 0.600",
    ]
    heights = [max(y for _, y in points(bar)) - min(y for _, y in points(bar)) for bar in bars]
    assert heights == pytest.approx([210, 168, 126], abs=PX)


def test_labels_are_moved_apart_and_no_further_than_needed():
    moved = apart([10, 11, 50, 12], 5)
    ordered = sorted(moved)
    assert min(b - a for a, b in itertools.pairwise(ordered)) >= 5 - 1e-9
    assert [sorted(moved).index(value) for value in moved] == [0, 1, 3, 2]
    assert sum(moved) == pytest.approx(83)
    # one that is far from the others stays
    assert moved == pytest.approx([6, 11, 50, 16])
    assert apart([], 5) == []


def test_charts_without_any_number_are_empty_and_not_an_error():
    result = results.expression(labels=("a",), num_genes=2, num_folds=1)
    drops = [dataclasses.replace(drop, random=math.nan, loso=math.nan) for drop in find_drops(result)]
    assert shapes(slopes(result, drops), "colour-0 series") == []
    bars = gene_bars(without_correlation(result, "GENE0", "GENE1"), "random", "random")
    assert [text.text for text in shapes(bars, "gene")] == ["GENE0", "GENE1"]
