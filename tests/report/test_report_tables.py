"""Results as tables: the paper's shape, what is best, what is missing, and three formats."""

import dataclasses
import math

import pytest
from support import results

from timm_mvhybrid.evaluate.expression.tables import find_drops
from timm_mvhybrid.report.table import (
    Cell,
    Table,
    mark_best,
    number_cell,
    text_cell,
    to_html,
    to_latex,
    to_markdown,
)
from timm_mvhybrid.report.writer import result_tables


def test_scores_have_the_shape_of_the_paper_s_table():
    result = results.expression()
    scores = result_tables(result)[0]
    assert scores.columns == ("Model", "Folds", "PCC", "PCC-10", "MSE", "MAE")
    assert [(row[0].text, row[1].text) for row in scores.rows] == [
        ("mvhybrid", "random, 4 folds"),
        ("vit12", "random, 4 folds"),
        ("mvhybrid", "LOSO, 4 folds"),
        ("vit12", "LOSO, 4 folds"),
        ("mvhybrid", "drop, %"),
        ("vit12", "drop, %"),
    ]
    summaries = [result.summary("mvhybrid", "loso", name) for name in ("pcc", "pcc10", "mse", "mae")]
    expected = [f"{summary.mean:.3f} ± {summary.std:.3f}" for summary in summaries]
    assert [cell.text for cell in scores.rows[2][2:]] == expected
    assert scores.rows[4][2].text == f"{find_drops(result)[0].percent:.1f}"
    # the better model of each kind of folds, and the smaller drop
    for first, second in (scores.rows[start : start + 2] for start in (0, 2, 4)):
        drop = first[1].text.startswith("drop")
        for name, one, other in zip(("pcc", "pcc10", "mse", "mae"), first[2:], second[2:], strict=True):
            higher_is_better = name.startswith("pcc") and not drop
            assert one.best == ((one.value > other.value) == higher_is_better)
            assert other.best != one.best


def test_folds_and_genes_are_all_there():
    result = results.expression(num_genes=7, num_folds=3)
    tables = {table.name: table for table in result_tables(result)}
    assert len(tables["folds"].rows) == 2 * 2 * 3
    assert [row[0].text for row in tables["genes"].rows] == [f"GENE{index}" for index in range(7)]
    folds = result.unit_values("mvhybrid", "random", "pcc")
    mean = sum(genes["GENE2"] for genes in folds.values()) / 3
    assert tables["genes"].rows[2][1].value == pytest.approx(mean)
    assert len(tables["intervals"].rows) == 2 * 2 * 5
    assert tables["comparisons"].rows[0][0].text == "vit12 − mvhybrid"
    assert tables["models"].rows[0][7].text == "40.0"


def test_a_gene_without_correlation_in_a_fold_is_averaged_over_the_others():
    result = results.expression(labels=("a",), num_genes=2, num_folds=2)

    def change(score):
        # no gene has a correlation in the first fold, and the second fold lacks a gene
        if score.unit and score.fold == "0":
            return score._replace(value=math.nan)
        return None if score.unit == "GENE1" else score

    result = results.with_scores(result, change)
    rows = next(table for table in result_tables(result) if table.name == "genes").rows
    assert rows[0][1].value == result.unit_values("a", "random", "pcc")["1"]["GENE0"]
    assert rows[1][1] == Cell(text="–")


def test_a_drop_that_does_not_exist_is_shown_as_missing():
    result = results.expression()
    summaries = tuple(
        dataclasses.replace(one, mean=-0.1) if one.protocol == "random" else one for one in result.summaries
    )
    row = result_tables(dataclasses.replace(result, summaries=summaries))[0].rows[4]
    assert [cell.text for cell in row[2:]] == ["–"] * 4


@pytest.mark.parametrize("make", results.ALL_TASKS, ids=lambda make: make.__name__)
def test_every_task_has_tables_in_every_format(make):
    tables = result_tables(make())
    names = [table.name for table in tables]
    assert len(set(names)) == len(names)
    shown = [table for table in tables if not table.page_only]
    assert to_markdown(tables).count("\n| ---") == len(shown)
    assert to_latex(tables).count(r"\toprule") == len(shown)
    for table in tables:
        assert to_html(table).count("<tr>") == len(table.rows) + 1


def test_a_single_split_has_no_deviation():
    tables = result_tables(results.classification())
    assert [cell.text for cell in tables[0].rows[0][2:]] == ["0.800", "0.790", "0.700", "0.800", "–"]


def test_ties_as_shown_are_best_together_and_errors_are_best_when_low():
    cells = [number_cell(0.50004), number_cell(0.5), number_cell(0.4), number_cell(math.nan)]
    assert [cell.best for cell in mark_best(cells, higher=True)] == [True, True, False, False]
    assert [cell.best for cell in mark_best(cells, higher=False)] == [False, False, True, False]
    assert not any(cell.best for cell in mark_best(cells[2:], higher=True))


def test_numbers_have_a_minus_sign_and_their_spread():
    assert number_cell(-0.12345, 2, 0.1).text == "−0.12 ± 0.10"
    assert number_cell(0.5, 1, sign=True).text == "+0.5"
    assert number_cell(None) == number_cell(math.nan) == Cell(text="–")


TRICKY = Table(
    name="t",
    caption="50 % & more <b>",
    columns=("A_b", "n|m"),
    rows=((text_cell("x_1 | <i>&{y}"), Cell(text="−1 ± 2", value=-1.0, best=True)),),
)


def test_markdown_escapes_what_would_break_a_table():
    assert to_markdown([TRICKY]) == (
        "50 % & more \\<b>\n\n| A_b | n\\|m |\n| --- | ---: |\n| x_1 \\| \\<i>&{y} | **−1 ± 2** |\n"
    )


def test_latex_escapes_what_is_special_to_it():
    latex = to_latex([TRICKY])
    assert r"\caption{50 \% \& more <b>}" in latex
    assert r"x\_1 | <i>\&\{y\} & \textbf{$-$1 $\pm$ 2} \\" in latex
    assert r"\begin{tabular}{lr}" in latex


def test_html_escapes_and_keeps_the_values_to_sort_by():
    html = to_html(TRICKY)
    assert "<i>" not in html
    assert "<b>" not in html
    assert 'data-value="-1.0"><strong>−1 ± 2</strong>' in html


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="table t: 1 cells for 2 columns"):
        Table(name="t", caption="", columns=("a", "b"), rows=((text_cell("x"),),))
