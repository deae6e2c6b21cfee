"""Pictures for the page: its own colours and fonts, no ids, the same bytes each time, any name."""

import itertools
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pytest
from support import results

from timm_mvhybrid.evaluate.expression.charts import gene_bars, slope_chart
from timm_mvhybrid.evaluate.expression.tables import find_drops
from timm_mvhybrid.evaluate.expression.task import METRICS as EXPRESSION_METRICS
from timm_mvhybrid.evaluate.labelled_patches import confusion_matrix, precision_bars
from timm_mvhybrid.evaluate.slide_bags import roc_curves, survival_curves
from timm_mvhybrid.report import check_report_folder
from timm_mvhybrid.report.drawing import Drawing, chart_style
from timm_mvhybrid.report.series_looks import bar, curve, marker
from timm_mvhybrid.runtime.errors import MissingPackageError

CHARTS = {
    "slope": lambda: slope_chart(find_drops(results.expression()), ["mvhybrid", "vit12"], EXPRESSION_METRICS),
    "genes": lambda: gene_bars(results.expression(num_genes=6), "loso", "LOSO"),
    "confusion": lambda: confusion_matrix("vit12", ["a", "b"], [[8, 2], [1, 9]]),
    "retrieval": lambda: precision_bars("precision@1", {"vit12": {"ADI": 1.0, "LYM": 0.8}}),
    "roc": lambda: roc_curves({"vit12": results.slides().arrays["slides"]}),
    "survival": lambda: survival_curves("vit12", results.survival().arrays["patients"], "months"),
}
ATTRIBUTES = {"class", "d", "fill-opacity", "font-size", "text-anchor", "transform", "x", "y"}


@pytest.mark.parametrize("name", CHARTS)
def test_looks_are_left_to_the_page(name):
    picture = ElementTree.fromstring(CHARTS[name]())
    assert set(picture.attrib) == {"viewBox", "width", "height", "role", "aria-label"}
    assert picture.get("role") == "img"
    assert picture.get("aria-label")
    for element in picture:
        assert element.tag in ("path", "text")
        assert element.get("class")
        assert set(element.attrib) <= ATTRIBUTES
        assert {child.tag for child in element} <= {"title"}
    assert any(element.tag == "text" and element.text for element in picture)


@pytest.mark.parametrize("name", CHARTS)
def test_a_picture_is_the_same_each_time_and_whatever_the_user_s_settings(name):
    first = CHARTS[name]()
    changed = {
        "font.size": 31,
        "axes.grid": True,
        "figure.dpi": 300,
        "savefig.pad_inches": 2,
        "lines.marker": "x",
    }
    with matplotlib.rc_context(changed):
        before = dict(matplotlib.rcParams)
        assert CHARTS[name]() == first
        assert dict(matplotlib.rcParams) == before


def test_numbers_are_short():
    for number in re.findall(r"[\d.]+", ElementTree.fromstring(CHARTS["survival"]()).find("path").get("d")):
        assert re.fullmatch(r"\d+(\.\d{1,2})?", number)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("$x_1^2$", "$x_1^2$"),
        ("$", "$"),
        ("_hidden", "_hidden"),
        ("<b>&\"'", "<b>&\"'"),
        ("two\nlines\tand  more", "two lines and more"),
        ("bell\x07 \x00 \ud800", "bell� � �"),
        ("组织 🧬", "组织 🧬"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_any_name_is_shown_as_it_is(name, shown):
    # a warning, such as that matplotlib's font lacks a letter, would be an error here
    bars = gene_bars(results.expression(labels=(name, "b"), num_genes=2), "loso", "LOSO")
    assert shown in [element.text for element in ElementTree.fromstring(bars)]
    matrix = ElementTree.fromstring(confusion_matrix("a", [name, "b"], [[8, 2], [1, 9]]))
    assert [element.text for element in matrix].count(shown) == 2
    assert f"{shown} taken for b: 2 of 10" in [element.findtext("title") for element in matrix]


def test_the_first_24_series_are_told_apart():
    for looks in (
        [curve(series) for series in range(24)],
        [(curve(series).split()[0], marker(series)["marker"]) for series in range(24)],
    ):
        assert len(set(looks)) == 24
    assert len({bar(series) for series in range(18)}) == 18
    # neighbours differ in both
    for one, other in itertools.pairwise(range(24)):
        assert marker(one)["marker"] != marker(other)["marker"]


@chart_style()
def legend_of(names, width):
    drawing = Drawing("legend")
    drawing.legend({name: series for series, name in enumerate(names)}, 0, 0, width=width)
    return ElementTree.fromstring(drawing.svg())


def test_a_legend_takes_as_few_rows_as_fit():
    names = [f"a_model_with_a_long_name_{index}" for index in range(9)]
    wide, narrow, single = legend_of(names[:3], 940), legend_of(names, 940), legend_of(names, 0)
    for picture, num_rows in ((wide, 1), (narrow, 3), (single, 9)):
        rows = {element.get("y") for element in picture.iter("text")}
        assert len(rows) == num_rows
    assert 600 < float(narrow.get("width")) <= 948
    assert [element.text for element in narrow.iter("text")] == names


def test_what_has_no_mark_is_noticed():
    with chart_style():
        drawing = Drawing("forgotten")
        drawing.panel(0, 0, 10, 10).plot([0, 1], [0, 1])
        with pytest.raises(RuntimeError, match="matplotlib drew a path that belongs to no mark"):
            drawing.svg()


def test_matplotlib_is_missed_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'timm-mvhybrid\[evaluate\]'"):
        check_report_folder(tmp_path / "report", overwrite=False)
    assert not (tmp_path / "report").exists()


def test_drawing_is_silent_and_keeps_out_of_pyplot(tmp_path):
    # where matplotlib finds no place for its list of fonts, it says so with every import
    script = (
        "import logging, sys\n"
        "from support import results\n"
        "from timm_mvhybrid.report import write_report\n"
        "write_report(results.slides(), sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert logging.getLogger('matplotlib').level == logging.NOTSET\n"
    )
    environment = {**os.environ, "MPLCONFIGDIR": os.devnull + "/none"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
