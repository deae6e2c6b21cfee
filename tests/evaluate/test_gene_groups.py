"""Correlations by group of genes: what they are the means of, and where they are shown."""

import json
import re
from xml.etree import ElementTree

import anndata
import numpy as np
import pytest
from support.hest_tasks import GENES, write_studies, write_task

from timm_mvhybrid.cli import main
from timm_mvhybrid.data import DataError
from timm_mvhybrid.evaluate import ExpressionOptions, ProbeOptions, evaluate_expression, read_result
from timm_mvhybrid.evaluate.expression.groups import group_bars, groups_of, groups_table, score_groups
from timm_mvhybrid.evaluate.expression.showing import ExpressionPresentation
from timm_mvhybrid.probes.expression_metrics import expression_metrics
from timm_mvhybrid.report import Result, compare_reports, result_from_json, write_report

GROUP_OF = {gene: ("second", "first", "rare & odd")[min(index % 5, 2)] for index, gene in enumerate(GENES)}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    task = write_task(tmp_path_factory.mktemp("groups"), splits=False)
    for file in sorted((task / "adata").glob("*.h5ad")):
        data = anndata.read_h5ad(file)
        data.var["band"] = [GROUP_OF[gene] for gene in data.var_names]
        data.var["kind"] = "all"
        data.write_h5ad(file)
    write_studies(task.parent / "studies.csv", {"S0": "a", "S1": "a", "S2": "b", "S3": "c"})
    return task


@pytest.fixture(scope="module")
def embeddings():
    return {
        label: {f"S{index}": generator.normal(size=(24, 5)).astype(np.float32) for index in range(4)}
        for label, generator in (("one", np.random.default_rng(0)), ("two", np.random.default_rng(1)))
    }


def evaluated(task, embeddings, **changes):
    probe = ProbeOptions(num_components=4, num_folds=3, num_resamples=200, num_map_genes=1)
    options = {"num_genes": 12, "protocols": ("random", "loso"), "probe": probe, **changes}
    return evaluate_expression(
        task, [], ExpressionOptions(studies=task.parent / "studies.csv", **options), embeddings=embeddings
    )


@pytest.fixture(scope="module")
def result(task, embeddings):
    return evaluated(task, embeddings)


def test_a_group_s_score_is_the_mean_of_its_genes(result):
    assert groups_of(result) == {f"pcc:{group}": group for group in ("second", "first", "rare & odd")}
    for model in ("one", "two"):
        for protocol in ("random", "loso"):
            per_gene = result.unit_values(model, protocol, "pcc")
            for metric, group in groups_of(result).items():
                folds = result.fold_values(model, protocol, metric)
                assert folds.keys() == per_gene.keys()
                for fold, value in folds.items():
                    own = [pcc for gene, pcc in per_gene[fold].items() if GROUP_OF[gene] == group]
                    assert value == pytest.approx(np.mean(own), abs=1e-12)
                summary = result.summary(model, protocol, metric)
                assert summary.mean == pytest.approx(np.mean(list(folds.values())), abs=1e-12)
                assert summary.interval.low < summary.mean < summary.interval.high
                assert summary.interval.over == "folds and genes"
    # groups are compared between models as all genes are
    assert {(one.protocol, one.metric) for one in result.comparisons} >= {
        ("loso", "pcc:first"),
        ("random", "pcc"),
    }


def test_the_scores_of_all_genes_are_those_without_groups(task, embeddings, result):
    plain = evaluated(task, embeddings, gene_groups="none")
    assert groups_of(plain) == {}
    assert [one for one in result.summaries if ":" not in one.metric] == list(plain.summaries)
    assert [one for one in result.comparisons if ":" not in one.metric] == list(plain.comparisons)
    assert groups_table(plain, ExpressionPresentation()) is None
    assert group_bars(plain, "loso", "LOSO") is None


def test_another_column_may_be_named(task, embeddings, result):
    by_kind = evaluated(task, embeddings, gene_groups="kind")
    for protocol in ("random", "loso"):
        both = [by_kind.summary("one", protocol, name).mean for name in ("pcc", "pcc:all")]
        assert both[0] == pytest.approx(both[1], abs=1e-12)
    with pytest.raises(DataError, match=r"S0\.h5ad: var has no column 'sort'; it has band, kind"):
        evaluated(task, embeddings, gene_groups="sort")


def test_groups_survive_the_file(result):
    again = result_from_json(result.to_json())
    assert isinstance(again, Result)
    assert groups_of(again) == groups_of(result)
    assert again.summaries == result.summaries


def test_constant_genes_enter_a_group_by_the_policy():
    y = np.random.default_rng(0).normal(size=(9, 3))
    y[:, 1] = 2
    groups = {"A": "x", "B": "x", "D": "y"}
    expected = np.corrcoef(y[:, 0], y[:, 0] + y[:, 2])[0, 1]
    for policy, value in (("omit", expected), ("zero", expected / 2), ("propagate", np.nan)):
        found = expression_metrics(y, y + y[:, 2:], policy)
        means, units = score_groups(found, ["A", "B", "C"], groups)
        # C is of no group, and the fold has no gene of y
        assert means == pytest.approx({"pcc:x": value}, nan_ok=True)
        assert units["pcc:x"] == pytest.approx({"A": expected, "B": np.nan}, nan_ok=True)


def test_the_table_shows_means_and_intervals(result):
    table = groups_table(result, ExpressionPresentation())
    assert table.columns == ("Model", "Folds", "second", "first", "rare & odd")
    assert [[cell.text for cell in row[:2]] for row in table.rows] == [
        ["one", "random"], ["two", "random"], ["one", "LOSO"], ["two", "LOSO"]
    ]  # fmt: skip
    summary = result.summary("two", "loso", "pcc:first")
    ends = f"{summary.mean:.3f} ({summary.interval.low:.3f} to {summary.interval.high:.3f})"
    assert table.rows[3][3].text == ends.replace("-", "−")
    assert table.rows[3][3].value == summary.mean
    assert "second 3, first 3, rare & odd 6" in table.caption


def test_bars_are_as_high_as_means_and_whiskers_reach_the_intervals_ends(result):
    svg = group_bars(result, "loso", "LOSO")
    elements = list(ElementTree.fromstring(svg))
    axis = {}
    for tick, value in (
        (element, float(element.text.replace("−", "-")))
        for element in elements
        if element.get("class") == "tick" and re.fullmatch(r"−?[\d.]+", element.text or "")
    ):
        axis[value] = float(tick.get("y"))
    (v0, y0), (v1, y1) = sorted(axis.items())[0], sorted(axis.items())[-1]

    def value_at(y):
        return v0 + (y - y0) * (v1 - v0) / (y1 - y0)

    def ends_of(element):
        heights = [float(y) for y in re.findall(r"[ML] -?[\d.]+ (-?[\d.]+)", element.get("d"))]
        return value_at(max(heights)), value_at(min(heights))

    # heights are written in hundredths of a px, and ticks stand a constant distance above their lines
    offset = next(
        value_at(float(re.search(r"M -?[\d.]+ (-?[\d.]+)", element.get("d"))[1]))
        for element in elements
        if element.get("class") == "zero"
    )
    bound = 4 * 0.01 * abs((v1 - v0) / (y1 - y0))
    bars = [
        element
        for element in elements
        if "bar" in (element.get("class") or "").split() and element.findtext("title")
    ]
    assert len(bars) == 6
    for bar in bars:
        group, model = re.match(r"(.+), (\w+): ", bar.findtext("title")).groups()
        summary = result.summary(model, "loso", f"pcc:{group}")
        low, high = (end - offset for end in ends_of(bar))
        assert low == pytest.approx(min(summary.mean, 0), abs=bound)
        assert high == pytest.approx(max(summary.mean, 0), abs=bound)
    whiskers = [
        tuple(end - offset for end in ends_of(one)) for one in elements if one.get("class") == "whisker"
    ]
    intervals = [
        result.summary(model, "loso", metric).interval
        for model in ("one", "two")
        for metric in groups_of(result)
    ]
    expected = sorted((one.low, one.high) for one in intervals)
    np.testing.assert_allclose(sorted(whiskers), expected, rtol=0, atol=bound)


def test_groups_are_in_the_report_and_side_by_side(task, result, tmp_path):
    write_report(result, tmp_path / "report")
    text = (tmp_path / "report" / "tables.md").read_text()
    assert "| Model | Folds | second | first | rare & odd |" in text
    assert r"rare \& odd" in (tmp_path / "report" / "tables.tex").read_text()
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'data-plot="groups-loso"' in page
    assert "rare &amp; odd" in page
    write_report(result, tmp_path / "again")
    compare_reports([tmp_path / "report", tmp_path / "again"], tmp_path / "both")
    rows = [
        line for line in (tmp_path / "both" / "tables.md").read_text().splitlines() if "PCC, first" in line
    ]
    assert len(rows) == 2
    assert all(
        f"{result.summary('one', protocol, 'pcc:first').mean:.3f}".replace("-", "−") in row
        for protocol, row in zip(("random", "loso"), rows, strict=True)
    )


def test_the_command_reports_groups(task, tmp_path, capsys):
    command = [
        "evaluate",
        "expression",
        str(task),
        "--model",
        "baseline:colour",
        "--studies",
        str(task.parent / "studies.csv"),
    ]
    command += [
        "--num-genes",
        "12",
        "--num-components",
        "4",
        "--map-genes",
        "0",
        "--baselines",
        "none",
        "--device",
        "cpu",
    ]
    command += ["--num-workers", "0", "--protocols", "loso", "--cache", str(tmp_path / "cache")]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    (scores,) = json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]
    found = read_result(tmp_path / "out")
    assert scores["pcc:first"] == found.summary("baseline:colour", "loso", "pcc:first").mean
    assert scores["pcc:first"] > 0.5
    assert main([*command, "--gene-groups", "sort", "--output", str(tmp_path / "other")]) == 1
    assert "var has no column 'sort'" in capsys.readouterr().err
