"""Reports on disk, and several of them side by side."""

import dataclasses
import json

import pytest
from support import results

from timm_mvhybrid.cli import main
from timm_mvhybrid.evaluate import EvaluationError, read_result
from timm_mvhybrid.evaluate.expression.tables import published
from timm_mvhybrid.report import compare_reports, write_report

FILES = ["index.html", "results.json", "tables.md", "tables.tex"]


@pytest.mark.parametrize("make", results.ALL_TASKS, ids=lambda make: make.__name__)
def test_a_report_is_four_files_that_need_no_other(tmp_path, make):
    page = write_report(make(), tmp_path / "report").read_text()
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == FILES
    assert "src=" not in page
    assert "href=" not in page
    assert "@import" not in page
    assert "url(" not in page
    # read as it was written; NaN is not equal to itself, so the text is compared
    assert read_result(tmp_path / "report").to_json() == make().to_json()


def test_a_report_is_replaced_only_when_asked(tmp_path):
    write_report(results.retrieval(), tmp_path)
    with pytest.raises(
        EvaluationError, match=r"results.json: exists already; replace the report with `overwrite=True`"
    ):
        write_report(results.survival(), tmp_path)
    assert read_result(tmp_path).task == "retrieval"
    write_report(results.survival(), tmp_path, overwrite=True)
    assert read_result(tmp_path).task == "survival"


def test_generated_data_and_random_weights_are_said_first_in_every_format(tmp_path):
    result = results.expression(provenance=results.provenance(generated=True))
    untrained = dataclasses.replace(result.models[1], weights="random")
    write_report(dataclasses.replace(result, models=(result.models[0], untrained)), tmp_path)
    for name, start in (("tables.md", "> "), ("tables.tex", "% ")):
        lines = (tmp_path / name).read_text().splitlines()
        assert lines[0].startswith(f"{start}Generated data, drawn by a program and not measured: COHORT.")
    page = (tmp_path / "index.html").read_text()
    assert (
        page.index("Generated data")
        < page.index("Random weights, never trained: vit12.")
        < page.index("<table")
    )
    write_report(results.expression(), tmp_path, overwrite=True)
    assert "Generated data" not in (tmp_path / "index.html").read_text()
    assert "Random weights" not in (tmp_path / "index.html").read_text()


def test_names_from_files_cannot_become_markup(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    result = results.expression(labels=(evil,), dataset=evil)
    maps = [{**one, "gene": evil, "sample_id": evil} for one in result.arrays["maps"]]
    changed = dataclasses.replace(result, arrays={**result.arrays, "maps": maps}, notes=(evil,))
    page = write_report(changed, tmp_path).read_text()
    assert "<img" not in page.replace("<\\/script><img", "")
    assert page.count("</script>") == 2
    data = page.split('id="map-data">')[1].split("</script>")[0]
    assert json.loads(data)[0]["gene"] == evil


def test_comparison_puts_models_beside_the_paper_s_numbers(tmp_path):
    write_report(results.expression(("a", "b")), tmp_path / "first")
    write_report(results.expression(("c",)), tmp_path / "second")
    page = compare_reports([tmp_path / "first", tmp_path / "second"], tmp_path / "out").read_text()
    lines = (tmp_path / "out" / "tables.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("| Setting"))
    assert head == "| Setting | Metric | a | b | c | paper: MV_Hybrid | paper: ViT_12 |"
    loso = next(line for line in lines if line.startswith("| LOSO | PCC |"))
    assert loso.endswith("| 0.138 ± 0.102 | 0.097 ± 0.108 |")
    drop = next(line for line in lines if line.startswith("| drop, % | PCC |"))
    assert drop.endswith("| 35.5 | 53.7 |")
    assert "published, not measured here, on other data" in page
    # the best is marked among the measured, and the paper's numbers never count
    assert [cell.startswith("**") for cell in loso.strip("| ").split(" | ")] == [
        *[False] * 2,
        True,
        False,
        True,
        *[False] * 2,
    ]
    assert page.count('class="colour-2 series"') == 4
    assert "not directly comparable" not in page


def test_panels_that_the_paper_lacks_have_no_reference(tmp_path):
    write_report(results.expression(("a",), panel="mean"), tmp_path / "a")
    compare_reports([tmp_path / "a"], tmp_path / "out")
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "paper:" not in text
    assert "The paper published no numbers for this setting." in text


def test_the_paper_s_numbers_are_those_of_its_tables():
    first, second = published("hmhvg", "loso")
    assert (first.label, second.label) == ("paper: MV_Hybrid", "paper: ViT_12")
    assert first.values["loso", "mse"] == (5.889, 4.161)
    assert second.drops["pcc"] == 70.6
    benchmark = published("hvg", "csv")
    assert len(benchmark) == 6
    assert benchmark[-1].values["csv", "pcc10"] == (0.747, 0.082)
    assert published("mean", "loso") == published("hvg", "patient") == []


def test_models_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("early", "late"):
        write_report(results.expression(("vit12",)), tmp_path / name)
    page = compare_reports(
        [tmp_path / "early", tmp_path / "late" / "results.json"], tmp_path / "out"
    ).read_text()
    assert "vit12 (early)" in page
    assert "vit12 (late)" in page
    assert ">vit12<" not in page


def test_settings_that_differ_are_named(tmp_path):
    write_report(results.expression(("a",)), tmp_path / "a")
    changed = results.expression(("b",), preset="intercept", provenance=results.provenance(seed=1))
    write_report(changed, tmp_path / "b")
    compare_reports([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    note = "a and b differ in preset, seed: their numbers are not directly comparable."
    assert note in (tmp_path / "out" / "tables.md").read_text()
    assert note in (tmp_path / "out" / "index.html").read_text()


def test_a_comparison_of_other_tasks_lists_each_by_itself(tmp_path):
    made = [results.classification(), results.retrieval(), results.slides(), results.survival()]
    for result in made:
        write_report(result, tmp_path / result.task)
    compare_reports([tmp_path / result.task for result in made], tmp_path / "out")
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "| linear | Accuracy | 0.800 |" in text
    assert "| prototypes | precision@5 | 0.700 |" in text
    assert "| by patient | AUROC | 0.750 ± 0.050 |" in text
    assert "| by patient | Concordance | 0.625 ± 0.025 |" in text


@pytest.mark.parametrize(
    ("folders", "output", "message"),
    [
        (["a", "a"], "out", "name each evaluation once"),
        ([], "out", "no folder: name each evaluation once"),
        (["a"], "a", "is one of the evaluations; choose another `output`"),
        (["missing"], "out", "results.json: cannot be read|missing: cannot be read"),
    ],
)
def test_comparisons_that_make_no_sense_are_refused(tmp_path, folders, output, message):
    write_report(results.survival(), tmp_path / "a")
    with pytest.raises(EvaluationError, match=message):
        compare_reports([tmp_path / name for name in folders], tmp_path / output)


def test_the_commands_render_and_compare(tmp_path, capsys):
    write_report(results.survival(), tmp_path / "a")
    assert main(["report", "render", str(tmp_path / "a"), "--output", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "index.html").read_bytes() == (tmp_path / "a" / "index.html").read_bytes()
    command = ["report", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "c")]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "page": str(tmp_path / "c" / "index.html")
    }
    assert main(command) == 1
    assert "error:" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
