"""Curves and charts against numbers computed by hand."""

import dataclasses
import math
import re

import pytest
from support import results

from timm_mvhybrid.evaluate.report.expression_charts import gene_bars, slope_chart
from timm_mvhybrid.evaluate.report.other_charts import (
    confusion_matrix,
    kaplan_meier,
    retrieval_bars,
    roc_curves,
    roc_points,
    survival_curves,
)


def test_kaplan_meier_of_freireich_s_patients():
    # Freireich et al., Blood 21 (1963): remission in weeks under 6-mercaptopurine, in every textbook
    events = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    censored = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    steps = kaplan_meier(events + censored, [True] * 9 + [False] * 12)
    survival = {time: round(share, 4) for time, share, _ in steps}
    expected = {6: 0.8571, 7: 0.8067, 10: 0.7529, 13: 0.6902, 16: 0.6275, 22: 0.5378, 23: 0.4482}
    assert {time: survival[time] for time in expected} == expected
    assert survival[35] == 0.4482
    assert {time: at_risk for time, _, at_risk in steps}[10] == 15


def test_roc_with_ties_makes_slanted_pieces():
    points = roc_points([(0.9, True), (0.5, True), (0.5, False), (0.1, False)])
    assert points == [(0, 0), (0, 0.5), (0.5, 1), (1, 1)]
    assert roc_points([(0.9, True), (0.5, True)]) == []


def test_slope_chart_draws_every_model_and_names_the_drop():
    result = results.expression()
    svg = slope_chart(result)
    assert svg.count('class="stroke-0 series"') == svg.count('class="stroke-1 series"') == 4
    for drop in result.drops:
        assert f"{drop.loso:.3f}  ({drop.percent:.0f} %)" in svg
    assert slope_chart(dataclasses.replace(result, drops=())) is None


def test_slope_chart_says_where_a_drop_does_not_exist():
    result = results.expression(labels=("a",))
    drops = tuple(dataclasses.replace(drop, random=-0.1, percent=None) for drop in result.drops)
    assert "drop undefined" in slope_chart(dataclasses.replace(result, drops=drops))


def test_gene_bars_are_sorted_and_as_high_as_their_mean():
    result = results.expression(labels=("a",), num_genes=5)
    svg = gene_bars(result, "loso")
    titles = re.findall(r"<title>(\w+), a: (−?-?[\d.]+) ± [\d.]+ over 4 folds</title>", svg)
    values = [float(value) for _, value in titles]
    assert len(values) == 5
    assert values == sorted(values, reverse=True)
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" class="fill-0 bar"', svg)]
    assert heights[0] / heights[1] == pytest.approx(values[0] / values[1], rel=0.02)
    assert gene_bars(result, "patient") is None


def test_genes_without_correlation_leave_a_gap():
    result = results.expression(labels=("a",), num_genes=3, num_folds=1)
    fold = result.scores[0].folds[0]
    genes = (dataclasses.replace(fold.genes[0], pcc=math.nan), *fold.genes[1:])
    scores = dataclasses.replace(result.scores[0], folds=(dataclasses.replace(fold, genes=genes),))
    svg = gene_bars(dataclasses.replace(result, scores=(scores,)), "random")
    assert svg.count(" bar") == 2
    assert svg.count(' class="gene"') == 3


def test_confusion_matrix_adds_folds_up():
    result = results.classification()
    scores = dataclasses.replace(result.scores[0], folds=result.scores[0].folds * 2)
    svg = confusion_matrix(result, scores)
    assert "adenoma taken for HP &amp; SSA: 4 of 20" in svg
    assert svg.count('class="fill-0"') == 9
    assert "80 %" in svg


def test_retrieval_bars_show_precision_at_the_smallest_k():
    svg = retrieval_bars(results.retrieval())
    assert re.findall(r"(\w+), vit12: precision@1 ([\d.]+)", svg) == [
        ("ADI", "1.000"),
        ("LYM", "0.800"),
        ("TUM", "0.600"),
    ]
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" class="fill-0 bar"', svg)]
    assert heights == pytest.approx([200, 160, 120])


def test_curves_need_both_classes_and_patients():
    result = results.slides()
    assert roc_curves(result).count("<path") == 1
    slides = tuple(dataclasses.replace(slide, positive=True) for slide in result.scores[0].slides)
    assert (
        roc_curves(
            dataclasses.replace(result, scores=(dataclasses.replace(result.scores[0], slides=slides),))
        )
        is None
    )
    scores = results.survival().scores[0]
    assert survival_curves(dataclasses.replace(scores, patients=()), "") is None


def test_survival_curves_mark_the_censored_and_count_those_at_risk():
    scores = results.survival().scores[0]
    svg = survival_curves(scores, "months")
    assert svg.count("<path") == 2
    censored = sum(not patient.event for patient in scores.patients)
    assert len(re.findall(r'<line [^>]*class="stroke-\d series"', svg)) == censored
    assert "log-rank p = 0.013" in svg
    assert "time, months" in svg
    # at time 0 every patient of both groups is at risk
    assert svg.count(">20</text>") == 2
