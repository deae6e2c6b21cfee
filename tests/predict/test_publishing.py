"""A predictor through a Hub server of our own, by the commands of a user."""

import hashlib
import json

import numpy as np
import pytest
from support.generated_slides import write_slide
from support.hub_client import command, predict
from support.hub_server import READ_TOKEN, TOKEN
from support.predictors import fitted_predictor

from timm_mvhybrid.predict import ExpressionPredictor

REPO = "our-lab/predictor"
FILES = ["README.md", "predictor.json", "predictor.safetensors"]


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, features):
    expression = features @ np.ones((5, 2)) + 1
    predictor = ExpressionPredictor(alpha=1.0, num_resamples=5)
    predictor.fit(features, expression, studies=np.arange(40) % 4, genes=["A", "B"]).save(tmp_path / "one")
    return tmp_path / "one"


def published(hub, folder, *arguments, token=TOKEN, repo=REPO):
    _, call = hub
    return call(command, "publish", str(folder), "--repo", repo, *arguments, token=token)


def test_what_is_published_predicts_the_same_to_the_bit(hub, folder, features):
    server, call = hub
    outcome = published(hub, folder, "--revision", "v1.0")
    assert (outcome.error, outcome.value) == ("", 0)
    summary = json.loads(outcome.printed)
    assert summary["verified"]
    assert summary["sha256"] == hashlib.sha256((folder / "predictor.safetensors").read_bytes()).hexdigest()
    files = server.repositories[REPO].commits[summary["commit"]]
    assert sorted(files) == FILES
    assert f'load("hf-hub:{REPO}")' in files["README.md"].decode()
    expected = ExpressionPredictor.load(folder).predict(features).upper.tolist()
    for source in (f"hf-hub:{REPO}", f"hf-hub:{REPO}@v1.0", f"hf-hub:{REPO}@{summary['commit']}"):
        assert call(predict, source, features).value == expected


def test_the_command_takes_a_published_predictor_at_a_revision(hub, tmp_path):
    anndata = pytest.importorskip("anndata")
    _, call = hub
    fitted_predictor(tmp_path).save(tmp_path / "fitted")
    assert published(hub, tmp_path / "fitted", "--revision", "v1.0").value == 0
    write_slide(tmp_path / "one.tif")

    def predicted(predictor, output):
        arguments = ["--predictor", predictor, "--output", output, "--cache", tmp_path / "cache"]
        arguments += ["--num-workers", "0", "--device", "cpu"]
        outcome = call(command, "predict", *map(str, [tmp_path / "one.tif", *arguments]))
        assert (outcome.error, outcome.value) == ("", 0), outcome.printed
        return anndata.read_h5ad(output / "one.h5ad").layers["upper"]

    found = predicted(f"hf-hub:{REPO}@v1.0", tmp_path / "from_hub")
    np.testing.assert_array_equal(found, predicted(tmp_path / "fitted", tmp_path / "from_folder"))
    refused = call(
        command, "predict", str(tmp_path / "one.tif"), "--predictor", f"hf-hub:{REPO}@v9", "--output", "out"
    )
    assert refused.value == 1
    assert "has no such revision" in refused.printed


def test_publishing_again_uploads_nothing_and_a_tag_stays(hub, folder, features):
    _, call = hub
    published(hub, folder, "--revision", "v1.0")
    again = json.loads(published(hub, folder, "--revision", "v1.0").printed)
    assert again["actions"] == []
    ExpressionPredictor(alpha=9.0, num_resamples=5).fit(
        features, features[:, :2], studies=np.arange(40) % 4
    ).save(folder, overwrite=True)
    refused = published(hub, folder, "--revision", "v1.0")
    assert refused.value == 1
    assert "tags are never moved; choose a new --revision" in refused.printed
    assert published(hub, folder, "--revision", "v2.0").value == 0
    assert (
        call(predict, f"hf-hub:{REPO}@v1.0", features).value
        != call(predict, f"hf-hub:{REPO}", features).value
    )


def test_a_dry_run_does_nothing(hub, folder):
    server, _ = hub
    outcome = published(hub, folder, "--dry-run", token=None)
    assert [line.split(",")[0] for line in json.loads(outcome.printed)["actions"]] == [
        f"create public repository {REPO}",
        *(f"upload {name}" for name in ("predictor.json", "predictor.safetensors", "README.md")),
    ]
    assert server.repositories == {}


def test_a_changed_predictor_is_not_published(hub, folder):
    server, _ = hub
    file = folder / "predictor.json"
    file.write_text(file.read_text().replace('"A"', '"Z"'))
    outcome = published(hub, folder)
    assert outcome.value == 1
    assert "is not the description that predictor.safetensors was written with" in outcome.printed
    assert server.repositories == {}


def test_what_the_hub_changed_is_refused(hub, folder, features):
    server, call = hub
    repo = "our-lab/changed"  # which no cache has
    commit = json.loads(published(hub, folder, repo=repo).printed)["commit"]
    files = server.repositories[repo].commits[commit]
    files["predictor.json"] = files["predictor.json"].replace(b'"A"', b'"Z"')
    outcome = call(predict, f"hf-hub:{repo}", features)
    assert "PredictorError" in outcome.kinds
    assert "is not the description that predictor.safetensors was written with" in outcome.error


def test_what_is_not_there_is_said_in_one_sentence(hub, folder, features):
    _, call = hub
    assert "nothing is published at" in call(predict, "hf-hub:our-lab/none", features).error
    published(hub, folder)
    assert "has no such revision" in call(predict, f"hf-hub:{REPO}@v9", features).error
    assert "403" in published(hub, folder, "--revision", "v2", token=READ_TOKEN).printed
