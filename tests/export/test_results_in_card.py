"""Scores of evaluations in the model card: with protocol, digest of the data and interval, of the right weights alone."""

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from support import results
from support.slide_bags import write_bags, write_labels

from timm_mvhybrid.cli import main
from timm_mvhybrid.evaluate import EvaluationError, read_result
from timm_mvhybrid.export import export
from timm_mvhybrid.export.evaluations import check_run, record_result, rows_of_card
from timm_mvhybrid.report import compare_reports, write_report

NAME = "test_mvhybrid"


def write_weights(path, seed=0):
    torch.manual_seed(seed)
    path.parent.mkdir(exist_ok=True)
    model = timm.create_model(NAME, num_classes=0)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


@pytest.fixture
def run(tmp_path):
    write_weights(tmp_path / "run" / "teacher.safetensors")
    (tmp_path / "run" / "config.json").write_text("{}")
    return tmp_path / "run"


@pytest.fixture
def images(tmp_path):
    for label, grey in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(4):
            pixels = Image.new("RGB", (32, 32), (grey + 5 * index,) * 3)
            pixels.save(tmp_path / "images" / label / f"{index}.png")
    return tmp_path / "images"


def evaluate(run, images, output, *more):
    checkpoint = run / "teacher.safetensors"
    words = [
        "--model",
        NAME,
        "--checkpoint",
        str(checkpoint),
        "--num-folds",
        "2",
        "--num-neighbours",
        "3",
        "--device",
        "cpu",
        "--baselines",
        "none",
    ]
    words += ["--cache", str(output) + "-cache", "--num-workers", "0", "--output", str(output), *more]
    return main(["evaluate", "classification", str(images), *words])


def card_lines(folder):
    return [line for line in (folder / "README.md").read_text().splitlines() if "classification, " in line]


def test_a_run_keeps_results_of_its_weights_and_its_card_shows_them(run, images, tmp_path):
    assert evaluate(run, images, tmp_path / "report", "--run", str(run)) == 0
    export(run / "teacher.safetensors", NAME, tmp_path / "exported", run=run)
    found = read_result(tmp_path / "report")
    rows = card_lines(tmp_path / "exported")
    assert len(rows) == len(found.summaries) == 10
    accuracy = found.summary(NAME, "linear", "accuracy")
    first = next(row for row in rows if row.startswith("| accuracy ") and "linear" in row)
    for shown in (
        f"| {accuracy.mean:.4g} |",
        f"| {accuracy.interval.low:.4g} to {accuracy.interval.high:.4g} (95%) |",
        "| images |",
        f"| {found.provenance.data_digest} |",
        "linear, 2 folds; classes ['dark', 'light'], layout folders",
    ):
        assert shown in first
    # evaluated again, it stands there once
    assert evaluate(run, images, tmp_path / "report", "--run", str(run), "--overwrite") == 0
    assert len(list((run / "evaluations").iterdir())) == 1
    # side by side: the run's own results and a report
    compare_reports([run, tmp_path / "report"], tmp_path / "both")
    assert f"{NAME} (report)" in (tmp_path / "both" / "tables.md").read_text()


def test_a_report_is_named_at_export(run, images, tmp_path):
    assert evaluate(run, images, tmp_path / "report") == 0
    words = [str(run / "teacher.safetensors"), "--model", NAME, "--output", str(tmp_path / "exported")]
    assert main(["export", *words, "--results", str(tmp_path / "report")]) == 0
    assert len(card_lines(tmp_path / "exported")) == 10


def test_results_of_other_weights_are_refused(run, images, tmp_path, capsys):
    assert evaluate(run, images, tmp_path / "report") == 0
    other = write_weights(tmp_path / "other" / "teacher.safetensors", seed=1)
    with pytest.raises(EvaluationError, match=r"report: is of other weights .* than those that are exported"):
        export(other, NAME, tmp_path / "exported", results=[tmp_path / "report"])
    assert not (tmp_path / "exported").exists()
    # refused before anything is embedded
    capsys.readouterr()
    assert evaluate(other.parent, images, tmp_path / "again", "--run", str(run)) == 1
    assert "none of the models has this run's weights" in capsys.readouterr().err
    assert not list((tmp_path / "again-cache").rglob("*.h5"))
    with pytest.raises(EvaluationError, match="is not the folder of a run that left weights"):
        check_run(tmp_path, ["0" * 64])
    with pytest.raises(EvaluationError, match="no model of the result has this run's weights"):
        record_result(run, results.classification())


def test_rows_of_a_card_are_those_of_its_weights(tmp_path):
    result = results.expression()
    rows = rows_of_card(result, {result.models[0].weights_sha256})
    # both models of these results state the same weights
    assert len(rows) == len(result.summaries)
    assert rows_of_card(result, {"another"}) == []
    write_report(results.expression(provenance=results.provenance(generated=True)), tmp_path)
    generated = rows_of_card(read_result(tmp_path), {result.models[0].weights_sha256})
    assert all(row.protocol.startswith("generated data; expression, ") for row in generated)
    assert json.loads((tmp_path / "results.json").read_text())["schema"] == 2


def test_slides_of_other_weights_and_a_run_that_takes_no_results_are_refused_first(
    run, images, tmp_path, capsys
):
    slides = write_bags(tmp_path / "bags", num_patients=4)
    labels = write_labels(tmp_path / "labels.csv", slides)
    words = [str(tmp_path / "bags"), "--labels", str(labels), "--output", str(tmp_path / "slides")]
    assert main(["evaluate", "slides", *words, "--run", str(run)]) == 1
    assert "none of the models has this run's weights" in capsys.readouterr().err
    (run / "evaluations").write_text("a file stands where the folder goes")
    assert evaluate(run, images, tmp_path / "again", "--run", str(run)) == 1
    assert f"error: {run / 'evaluations'}: cannot be written" in capsys.readouterr().err
    assert not list((tmp_path / "again-cache").rglob("*.h5"))
