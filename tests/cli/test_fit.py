import json

import pytest
from support.hest_tasks import write_studies, write_task

from timm_mvhybrid.cli import main
from timm_mvhybrid.predict import ExpressionPredictor

STUDIES = {"S0": "a", "S1": "b", "S2": "c", "S3": "a"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path)
    write_studies(tmp_path / "studies.csv", STUDIES)
    return tmp_path


def fit(*arguments, output="predictor"):
    fixed = ["--device", "cpu", "--num-workers", "0", "--cache", "cache", "--num-resamples", "20"]
    return main(
        ["fit", "expression", "TASK", "--model", "test_vit12", "--studies", "studies.csv", "--num-genes", "4", *fixed, *arguments, "--output", output]
    )  # fmt: skip


def test_a_predictor_is_written(folder, capsys):
    assert (
        fit(
            "--alpha",
            "2.5",
            "--num-components",
            "6",
            "--level",
            "0.9",
            "--log",
            "log.jsonl",
            "--log-every",
            "1",
        )
        == 0
    )
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["output"] == "predictor"
    assert (summary["num_genes"], summary["num_studies"], summary["num_components"]) == (4, 3, 6)
    assert "warning: the weights are random" in printed.err
    predictor = ExpressionPredictor.load("predictor")
    assert (predictor.alpha, predictor.level, len(predictor.genes_)) == (2.5, 0.9, 4)
    assert sorted(path.name for path in (folder / "predictor").iterdir()) == [
        "README.md",
        "predictor.json",
        "predictor.safetensors",
    ]
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert events == ["start", "progress", "progress", "progress", "progress", "done"]


def test_the_seed_of_random_weights_is_kept(folder):
    assert fit("--seed", "7", "--alpha", "recipe") == 0
    predictor = ExpressionPredictor.load("predictor")
    assert predictor.encoder_.seed == 7
    assert predictor.alpha is None


def test_an_output_that_exists_is_refused_before_anything_else(folder, capsys):
    assert fit() == 0
    before = (folder / "predictor" / "predictor.json").read_bytes()
    capsys.readouterr()
    (folder / "studies.csv").unlink()
    assert fit() == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: {folder / 'predictor'}: exists already; replace it with --overwrite"
    ]
    assert (folder / "predictor" / "predictor.json").read_bytes() == before


def test_messages_name_flags(folder, capsys):
    write_studies(folder / "studies.csv", {**dict.fromkeys(STUDIES, "a"), "S1": "b"})
    assert fit("--log", "log.jsonl") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: --alpha nested needs at least three studies")
    assert last.endswith("give --alpha as a number")
    assert json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["event"] == "error"
    assert not (folder / "predictor").exists()


def test_only_expression_can_be_fitted(folder, capsys):
    with pytest.raises(SystemExit) as raised:
        main(
            [
                "fit",
                "survival",
                "TASK",
                "--model",
                "test_vit12",
                "--studies",
                "studies.csv",
                "--output",
                "out",
            ]
        )
    assert raised.value.code == 2
