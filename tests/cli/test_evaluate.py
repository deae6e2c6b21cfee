import json
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from PIL import Image
from support.hest_tasks import write_studies, write_task
from support.slide_bags import write_bags, write_follow_up, write_labels

from timm_mvhybrid.cli import main
from timm_mvhybrid.evaluate import read_result
from timm_mvhybrid.runtime.anndata_file import quiet_anndata

EMBEDDED = ["--device", "cpu", "--num-workers", "0", "--cache", "cache"]
MODEL = ["--model", "test_vit12", "--baselines", "none", *EMBEDDED]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(task, *arguments, output="out"):
    return main(["evaluate", task, *arguments, "--output", output])


def write_images(root):
    for label, colour in (("light", 220), ("dark", 60)):
        (root / label).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(index).integers(
                colour - 30, colour + 30, (128, 128, 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(root / label / f"{index}.png")


def test_expression(folder, capsys):
    write_task(folder, num_samples=3)
    write_studies(folder / "studies.csv", {"S0": "a", "S1": "b", "S2": "c"})
    arguments = [
        "TASK", *MODEL, "--studies", "studies.csv", "--num-genes", "5", "--num-components", "8", "--num-folds", "2",
        "--preset", "intercept", "--alpha", "nested", "--map-genes", "1", "--map-samples", "1", "--ddof", "1",
    ]  # fmt: skip
    assert evaluate("expression", *arguments) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert [score["protocol"] for score in summary["scores"]] == ["csv", "random", "loso"]
    assert "the weights of test_vit12 are random" in printed.err
    result = read_result("out")
    assert (result.settings["preset"], result.settings["panel"], result.summaries[0].ddof) == (
        "intercept",
        "hvg",
        1,
    )
    assert len(result.arrays["maps"]) == 3
    assert result.provenance.options["probe"]["alpha"] == "nested"
    for name in ("index.html", "tables.md", "tables.tex"):
        assert (folder / "out" / name).stat().st_size > 100
    assert evaluate("expression", *arguments) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_baselines_are_shown_beside_the_models_unless_told_not_to(folder, capsys):
    write_task(folder, num_samples=2)
    options = [
        "TASK",
        "--num-genes",
        "5",
        "--protocols",
        "csv",
        "--map-genes",
        "1",
        "--global-pool",
        "token",
        *EMBEDDED,
    ]
    assert evaluate("expression", *options, "--model", "test_vit12", "--num-components", "30") == 1
    assert "model test_vit12" in capsys.readouterr().err
    names = ["test_vit12", "baseline:colour", "baseline:mean", "baseline:position"]
    # baselines take the components that they have
    assert evaluate("expression", *options, "--model", "test_vit12", "--num-components", "23") == 0
    captured = capsys.readouterr()
    assert "the weights of test_vit12 are random" in captured.err
    scores = {one["model"]: one for one in json.loads(captured.out)["scores"]}
    assert list(scores) == names
    assert scores["baseline:mean"]["pcc"] is None
    result = read_result("out")
    assert [model.label for model in result.models] == names
    components = {fold.model: fold.facts["num_components"] for fold in result.folds}
    assert components == dict(zip(names, (23, 22, None, None), strict=True))
    page = Path("out", "index.html").read_text()
    assert all(name in page for name in names)
    # as models, in the order in which they are named, and none beside them
    named = "baseline:position,test_vit12,baseline:colour"
    assert evaluate("expression", *options, "--model", named, "--baselines", "colour", output="named") == 0
    assert [model.label for model in read_result("named").models] == named.split(",")
    capsys.readouterr()
    assert evaluate("expression", *options, "--model", "test_vit12", "--baselines", "color", output="no") == 1
    assert (
        "--baselines has 'color'; choose from colour, mean, position, or none alone"
        in capsys.readouterr().err
    )


def test_images_have_the_baseline_of_colours(folder, capsys):
    write_images(folder / "images")
    options = ["images", "--model", "test_vit12", "--num-folds", "2", *EMBEDDED]
    assert evaluate("classification", *options, "--num-neighbours", "3") == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert list(dict.fromkeys(score["model"] for score in scores)) == ["test_vit12", "baseline:colour"]
    assert evaluate("retrieval", *options, output="retrieval") == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    # light and dark images differ in colour
    assert [score["accuracy"] for score in scores if score["model"] == "baseline:colour"] == [1.0]
    assert evaluate("retrieval", *options, "--model", "baseline:position", output="no") == 1
    assert "only `evaluate expression` takes it" in capsys.readouterr().err


def move_counts(data, kind):
    if kind == "float16":
        data.X = data.X.toarray().astype(np.float16)
        return data
    if kind == "raw":
        data.raw = data.copy()
    else:
        data.layers[kind] = data.X.copy()
    data.X = np.log1p(data.X.toarray())
    return data


@pytest.mark.parametrize("kind", ["float16", "raw", "umi"])
def test_counts_are_the_same_wherever_the_files_keep_them(folder, capsys, kind):
    task = write_task(folder, num_samples=2)
    options = ["TASK", *MODEL, "--num-genes", "5", "--num-components", "8", "--protocols", "csv"]
    assert evaluate("expression", *options) == 0
    for sample in ("S0", "S1"):
        file = task / "adata" / f"{sample}.h5ad"
        with quiet_anndata():
            move_counts(anndata.read_h5ad(file), kind).write_h5ad(file)
    if kind != "float16":
        capsys.readouterr()
        assert evaluate("expression", *options, output="wrong") == 1
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: TASK/adata/S0.h5ad: barcode ")
        assert last.endswith(f"take them by --counts-layer {kind}")
        options += last.split(" by ")[-1].split()
    assert evaluate("expression", *options, output="moved") == 0
    assert read_result("moved").scores == read_result("out").scores


def read_log(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_log_tells_of_embedding_and_scoring_and_the_output_has_a_place_by_default(folder, capsys):
    write_task(folder, num_samples=2)
    arguments = [
        "TASK", *MODEL, "--model", "test_vit12,test_mvhybrid", "--protocols", "random", "--num-folds", "2",
        "--num-genes", "5", "--num-components", "8", "--log", "log.jsonl", "--log-every", "1",
    ]  # fmt: skip
    assert main(["evaluate", "expression", *arguments]) == 0
    page = json.loads(capsys.readouterr().out)["page"]
    assert page == str(Path("outputs", "expression-TASK", "index.html"))
    assert Path(page).is_file()
    start, *lines, done = read_log(folder / "log.jsonl")
    assert (start["event"], start["options"]["options"]["protocols"], done["event"]) == (
        "start",
        ["random"],
        "done",
    )
    assert done["page"] == page
    assert done["scores"][0]["model"] == "test_vit12"
    assert {line["source"] for line in lines if line["event"] == "progress"} == {"S0", "S1"}
    scored = [line for line in lines if line["event"] == "scored"]
    assert [(line["stage"], line["model"], line["num_done"], line["num_total"]) for line in scored] == [
        ("random", "test_vit12", 1, 2),
        ("random", "test_mvhybrid", 2, 2),
    ]


def test_a_log_keeps_what_stopped_the_run(folder, capsys):
    assert main(["evaluate", "expression", "TASK", *MODEL, "--log", "log.jsonl"]) == 1
    assert "TASK" in capsys.readouterr().err
    assert [line["event"] for line in read_log(folder / "log.jsonl")] == ["start", "error"]


def test_classification_and_retrieval(folder, capsys):
    write_images(folder / "images")
    for task in ("classification", "retrieval"):
        options = ["--num-neighbours", "3"] if task == "classification" else []
        assert (
            evaluate(
                task, "images", *MODEL, "--global-pool", "avg", "--num-folds", "2", *options, output=task
            )
            == 0
        )
        summary = json.loads(capsys.readouterr().out)
        assert summary["scores"][0]["accuracy"] == 1
        assert read_result(task).task == task


def test_slides_and_survival(folder, capsys):
    slides = write_bags(folder / "model", num_patients=12)
    write_labels(folder / "labels.csv", slides, patient="case_id")
    write_follow_up(folder / "follow_up.csv", slides)
    options = ["--labels", "labels.csv", "--num-folds", "2", "--num-epochs", "2", "--log", "log.jsonl"]
    assert evaluate("slides", "model", *options) == 0
    scored = [line["num_done"] for line in read_log(folder / "log.jsonl") if line["event"] == "scored"]
    assert scored == [1, 2]
    assert read_result("out").settings["positive_label"] in ("MSI", "MSS")
    assert (
        evaluate(
            "survival", "model", "--follow-up", "follow_up.csv", "--num-folds", "2", "--num-prototypes", "3",
            "--time-unit", "months", output="survival",
        )
        == 0
    )  # fmt: skip
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["scores"][0]["concordance"] > 0
    assert read_result("survival").settings["time_unit"] == "months"


def test_problems_are_one_line_and_exit_code_1(folder, capsys):
    write_task(folder, num_samples=2)
    for arguments, message in (
        (["nowhere", *MODEL], "nowhere: no such folder"),
        (["TASK", *MODEL, "--protocols", "loso"], "give --studies FILE"),
        (["TASK", *MODEL, "--checkpoint", "a,b"], "--checkpoint names 2 files for 1 models"),
        (["TASK", *MODEL, "--panel", "genes.json"], "genes.json: cannot be read as JSON"),
        (["TASK", *MODEL, "--num-genes", "5", "--num-components", "256"], "take at most 24"),
        (["TASK", *MODEL, "--num-genes", "500"], "protocol csv: 500 genes wanted"),
    ):
        assert evaluate("expression", *arguments) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1]
        assert lines[-1].startswith("error: ")
        assert not (folder / "out").exists() or not list((folder / "out").iterdir())


def test_a_missing_package_is_named_with_its_remedy(folder, capsys, monkeypatch):
    write_task(folder, num_samples=2)
    monkeypatch.setitem(sys.modules, "anndata", None)
    assert evaluate("expression", "TASK", *MODEL) == 1
    assert "pip install 'timm-mvhybrid[evaluate]'" in capsys.readouterr().err
