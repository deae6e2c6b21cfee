"""Curves over any quantity."""

import math
import re

from timm_mvhybrid.report.line_chart import line_chart

LABELS = {"x_label": "block", "y_label": "gain"}


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_chart_names_its_curves_axes_and_ends():
    svg = line_chart("Gains", {"first": [(0, 1.0), (1, 3.0)], "second": [(0, 2.0), (1, 2.5)]}, **LABELS)
    assert {"first", "second", "block", "gain"} <= set(texts(svg))
    assert "<title>first: 1 at 0, 3 at 1</title>" in svg
    assert 'aria-label="Gains"' in svg


def test_decades_are_labelled_on_a_logarithmic_scale_and_tenfold_numbers_only():
    wide = line_chart("Norms", {"a": [(8, 1e3), (24, 1e9)]}, logarithmic=True, **LABELS)
    assert {"1e+04", "1e+06"} & {text.replace("−", "-") for text in texts(wide)} or {"1e+05"} <= set(
        texts(wide)
    )
    assert "1e+09 at 24" in wide
    narrow = line_chart("Norms", {"a": [(8, 2.0), (24, 5.0)]}, logarithmic=True, **LABELS)
    assert narrow == line_chart("Norms", {"a": [(8, 2.0), (24, 5.0)]}, **LABELS)


def test_what_is_not_finite_is_left_out_and_one_point_is_no_curve():
    svg = line_chart(
        "Norms", {"a": [(1, 1.0), (2, math.inf), (3, 100.0)], "b": [(1, 5.0)]}, logarithmic=True, **LABELS
    )
    assert "b" not in texts(svg)
    assert "1 at 1, 100 at 3" in svg
    assert line_chart("Norms", {"a": [(1, math.nan), (2, 3.0)]}, **LABELS) is None
    assert line_chart("Norms", {}, **LABELS) is None
