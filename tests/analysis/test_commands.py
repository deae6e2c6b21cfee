"""``timm-mvhybrid analyse``: what it writes, and how it fails."""

import csv
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_mvhybrid.analysis.comparing import compared
from timm_mvhybrid.analysis.subjects import find_subject
from timm_mvhybrid.cli import main
from timm_mvhybrid.export.export import export
from timm_mvhybrid.runtime.errors import EvaluationError

SMALL = ["--num-images", "2", "--seeds", "2", "--image-size", "64"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Images, and a checkpoint of a model whose eigenvalues were moved away from where they start."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
            folder / "images" / f"{index}.png"
        )
    torch.manual_seed(5)
    model = timm.create_model("test_mvhybrid")
    with torch.no_grad():
        model.blocks[1].mixer.A_log.fill_(-3.0)
    torch.save(model.state_dict(), folder / "trained.pth")
    return folder


def analyse(work, what, *more, output="out"):
    return main(
        ["analyse", what, *more, "--images", str(work / "images"), "--output", str(work / output), *SMALL]
    )


def read(folder, name):
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_eigenvalues_of_trained_weights_beside_random_ones(work, capsys):
    assert analyse(work, "eigenvalues", f"test_mvhybrid={work / 'trained.pth'}", output="eigenvalues") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["page"].endswith("index.html")
    rows = read(work / "eigenvalues", "layers")
    assert len(rows) == 3 * 2
    moved = next(row for row in rows if row["weights"] == "trained" and row["block"] == "1")
    assert float(moved["A_median"]) == pytest.approx(-np.exp(-3.0), rel=1e-6)
    assert all(
        float(row["A_min"]) == pytest.approx(-16, rel=1e-6) for row in rows if row["weights"] == "random"
    )
    assert {row["unstable"] for row in rows} == {"0"}
    for row in rows:
        # memory 1/(δ λ) and decay exp(−δ λ) are quantiles of the same numbers, in opposite order
        assert float(row["decay_50"]) == pytest.approx(np.exp(-1 / float(row["memory_50"])), rel=0.2)
    (comparison,) = read(work / "eigenvalues", "comparisons")
    assert comparison["metric"] == "log10_memory_tokens"
    assert float(comparison["difference"]) > 0
    page = (work / "eigenvalues" / "index.html").read_text()
    assert "Random weights, never trained" in page
    assert page.count("<figure") == 3
    assert json.loads((work / "eigenvalues" / "results.json").read_text())["analysis"] == "eigenvalues"


def test_frequency_of_two_architectures(work, capsys):
    more = ["--frequencies", "1", "2", "--orientations", "rows", "columns", "--num-omega", "3"]
    assert analyse(work, "frequency", "test_mvhybrid", "test_vit12", *more, output="frequency") == 0
    capsys.readouterr()
    gratings = read(work / "frequency", "gratings")
    assert len(gratings) == 2 * 2 * 2 * 2 * 2
    assert all(float(row["gain"]) > 0 for row in gratings)
    scans = read(work / "frequency", "scans")
    assert {row["model"] for row in scans} == {"test_mvhybrid"}
    assert len(scans) == 2 * 2 * 3
    tokens = read(work / "frequency", "tokens")
    assert {row["block"] for row in tokens if row["model"] == "test_vit12"} == {str(b) for b in range(-1, 12)}
    # LayerScale of 1e-5: an untrained ViT is its patch embedding in every block
    shares = [
        float(row["high_share"]) for row in tokens if row["model"] == "test_vit12" and row["seed"] == "0"
    ]
    assert max(shares) - min(shares) < 0.05
    comparisons = read(work / "frequency", "comparisons")
    assert {row["model"] for row in comparisons} == {"test_vit12, random"}


def test_stability_of_channel_mixers_and_starts(work, capsys):
    more = ["--depths", "6", "--model-args", '{"ssm_depth": "all"}']
    assert analyse(work, "stability", "test_mvhybrid", *more, output="stability") == 0
    capsys.readouterr()
    found = {(row["channel_mixer"], row["mask_token"]): row for row in read(work / "stability", "mask-token")}
    assert len(found) == 9
    zero = float(found["mlp", "zero"]["mask_token_gradient"])
    assert zero > 1e3 * float(found["mlp", "std"]["mask_token_gradient"])
    assert zero > 1e2 * float(found["einfft", "zero"]["mask_token_gradient"])
    assert found["mlp", "zero"]["stays_zero"] == "true"
    assert found["mlp", "std"]["stays_zero"] == found["einfft", "zero"]["stays_zero"] == "false"
    kinds = {row["kind"] for row in read(work / "stability", "gradients")}
    assert {"mask_token", "in_proj", "A_log", "channel_mixer"} <= kinds
    assert float(read(work / "stability", "blocks")[0]["block_rms"]) > 0


def test_earlier_findings_are_kept_unless_told(work, capsys):
    (work / "kept").mkdir()
    (work / "kept" / "results.json").write_text("{}")
    assert analyse(work, "eigenvalues", "test_mvhybrid", output="kept") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (work / "kept" / "results.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("test_vit12", "no state-space block"),
        ("test_mvhybrit", "did you mean"),
        ("test_mvhybrid=missing.pth", "no such file"),
    ],
)
def test_models_that_cannot_be_analysed_are_named(work, capsys, model, message):
    assert analyse(work, "eigenvalues", model, output="refused") == 1
    assert message in capsys.readouterr().err
    assert not list((work / "refused").iterdir())


def test_wrong_options_are_refused(work, capsys):
    with pytest.raises(SystemExit):
        main(["analyse", "frequency", "test_mvhybrid", "--images", "x"])
    capsys.readouterr()
    assert (
        main(["analyse", "stability", "a", "--images", "x", "--output", str(work / "o"), "--seeds", "0"]) != 0
    )
    assert "--seeds" in capsys.readouterr().err


def test_models_are_found_by_file_export_and_run(work, tmp_path):
    named = find_subject(f"test_mvhybrid={work / 'trained.pth'}", {"img_size": 64})
    assert named.trained
    assert named.load().weights == "trained.pth"
    assert find_subject("test_vit12").trained is False
    export(work / "trained.pth", "test_mvhybrid", tmp_path / "exported", model_args={"ssm_depth": 2})
    exported = find_subject(str(tmp_path / "exported"))
    assert exported.architecture == ("test_mvhybrid", {"ssm_depth": 2})
    expected = torch.load(work / "trained.pth", weights_only=True)["blocks.0.mixer.A_log"]
    assert torch.equal(exported.load().model.blocks[0].mixer.A_log, expected)
    run = tmp_path / "run"
    run.mkdir()
    config = {
        "model": {"name": "test_mvhybrid", "arguments": {"mask_token_std": 0.02}},
        "crops": {"global_size_px": 64},
    }
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(EvaluationError, match=r"teacher\.safetensors"):
        find_subject(str(run))
    (tmp_path / "exported" / "model.safetensors").rename(run / "teacher.safetensors")
    found = find_subject(str(run))
    assert found.arguments == {"img_size": 64}
    assert torch.equal(found.load().model.blocks[0].mixer.A_log, expected)
    with pytest.raises(EvaluationError, match="NAME="):
        find_subject(str(work / "trained.pth"))


def test_comparisons_are_paired_by_image_and_weights_by_their_mean():
    images = np.arange(5.0)
    values = {
        ("a", "trained"): {"gain": [images + 1.0]},
        ("a", "random"): {"gain": [images - 1.0, images + 1.0]},
        ("b", "random"): {"gain": [2 * images]},
    }
    first, second = compared(values)
    assert first["model"] == "a, trained"
    assert first["difference"] == first["low"] == first["high"] == 1.0
    assert first["seeds_std"] == pytest.approx(np.sqrt(2.0))
    assert second["model"] == "b, random"
    assert second["difference"] == pytest.approx(2.0)
    assert second["low"] < 2.0 < second["high"]
