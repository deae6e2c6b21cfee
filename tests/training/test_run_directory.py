import hashlib
import json
import subprocess
import sys

import pytest
import torch

from timm_mvhybrid.export.run_records import read_run_records
from timm_mvhybrid.runtime.errors import PretrainError, TimmMVHybridError
from timm_mvhybrid.training.run_directory import RunDirectory, git_state

CONFIG = {
    "num_steps": 100,
    "data": {"name": "Patches of ours", "license": None},
    "crops": {"scale": [0.32, 1.0]},
}


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A working folder in no repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def git(folder, *arguments):
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_run_records_what_the_model_card_reads(outside):
    run = RunDirectory(outside / "deep" / "run")
    run.create(CONFIG, resume=False)
    run.add_evaluation(metric="kNN accuracy", value=0.5, dataset="ours", protocol="k = 20, step 10")
    records = read_run_records(run.path)
    assert records.config == CONFIG
    assert records.data["name"] == "Patches of ours"
    assert records.environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert json.loads(run.environment.read_text())["command"] == sys.argv
    assert records.environment["world_size"] == 1
    assert records.environment["git"] is None
    assert records.evaluations[0].value == 0.5
    assert run.read_config() == CONFIG
    assert run.checkpoints.is_dir()


def test_an_existing_run_is_refused_unless_it_is_resumed(outside):
    run = RunDirectory(outside / "run")
    run.create(CONFIG, resume=False)
    with pytest.raises(PretrainError, match=r"run: holds a run already; go on with `resume='auto'`"):
        run.create({"num_steps": 7}, resume=False)
    assert run.read_config() == CONFIG
    run.create({"num_steps": 7}, resume=True)
    assert run.read_config() == {"num_steps": 7}


def test_every_start_is_kept(outside):
    run = RunDirectory(outside / "run")
    for _ in range(3):
        run.create(CONFIG, resume=True)
    starts = [json.loads(line) for line in run.starts.read_text().splitlines()]
    assert [start["num_starts"] for start in starts] == [1, 2, 3]
    assert json.loads(run.environment.read_text()) == starts[-1]


def test_a_folder_with_a_schedulers_logs_is_no_run(outside):
    (outside / "run").mkdir()
    (outside / "run" / "slurm-1.out").write_text("starting")
    run = RunDirectory(outside / "run")
    run.create(CONFIG, resume=False)
    assert run.config.is_file()
    assert (outside / "run" / "slurm-1.out").read_text() == "starting"


@pytest.mark.parametrize("leftover", ["checkpoints", "metrics.jsonl"])
def test_a_run_without_its_configuration_is_still_a_run(outside, leftover):
    (outside / "run" / leftover).mkdir(parents=True)
    with pytest.raises(PretrainError, match="holds a run already"):
        RunDirectory(outside / "run").create(CONFIG, resume=False)


def test_git_state_tells_code_apart(outside):
    repository = outside / "repository"
    repository.mkdir()
    git(repository, "init")
    assert git_state(repository)[0] == {"commit": None, "dirty": False, "diff_sha256": None}
    (repository / "code.py").write_text("a = 1\n")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "first")
    commit = git(repository, "rev-parse", "HEAD")
    assert git_state(repository) == ({"commit": commit, "dirty": False, "diff_sha256": None}, b"")
    (repository / "untracked.py").write_text("b = 1\n")
    assert git_state(repository)[0] == {"commit": commit, "dirty": True, "diff_sha256": None}
    (repository / "code.py").write_text("a = 2\n")
    state, patch = git_state(repository)
    assert b"-a = 1\n+a = 2\n" in patch
    assert state["diff_sha256"] == hashlib.sha256(patch).hexdigest()


def test_uncommitted_code_lies_beside_the_run_and_goes_with_its_cause(outside, monkeypatch):
    repository = outside / "repository"
    repository.mkdir()
    git(repository, "init")
    (repository / "code.py").write_text("a = 1\n")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "first")
    (repository / "code.py").write_text("a = 2\n")
    monkeypatch.chdir(repository)
    run = RunDirectory(outside / "run")
    run.create(CONFIG, resume=False)
    environment = json.loads(run.environment.read_text())
    assert hashlib.sha256(run.uncommitted.read_bytes()).hexdigest() == environment["git"]["diff_sha256"]
    git(repository, "checkout", "code.py")
    run.create(CONFIG, resume=True)
    assert not run.uncommitted.exists()


def test_a_missing_git_is_no_failure(outside, monkeypatch):
    monkeypatch.setenv("PATH", str(outside))
    assert git_state(outside) == (None, b"")


def test_evaluations_replace_their_like_only(outside):
    run = RunDirectory(outside)
    entry = {"metric": "AUC", "dataset": "ours", "protocol": "kNN"}
    run.add_evaluation(**entry, value=0.5)
    run.add_evaluation(**{**entry, "dataset": "theirs"}, value=0.6)
    run.add_evaluation(**entry, value=0.7)
    values = {(item["dataset"], item["value"]) for item in json.loads(run.evaluations.read_text())}
    assert values == {("ours", 0.7), ("theirs", 0.6)}


@pytest.mark.parametrize(
    ("name", "content", "call", "message"),
    [
        ("config.json", '{"a": ', lambda run: run.read_config(), r"config\.json: not readable as JSON"),
        ("config.json", "[1]", lambda run: run.read_config(), r"config\.json: must hold a JSON object"),
        (
            "evaluations.json",
            "{}",
            lambda run: run.add_evaluation(metric="a", value=1, dataset="b", protocol="c"),
            r"evaluations\.json: must hold a list",
        ),
        (
            "any",
            "",
            lambda run: run.add_evaluation(metric="r", value=float("nan"), dataset="b", protocol="c"),
            "r on b is nan",
        ),
        (
            "any",
            "",
            lambda run: run.create({"lr": float("inf")}, resume=False),
            "the configuration is not JSON",
        ),
        (
            "any",
            "",
            lambda run: RunDirectory(run.path / "any").create({}, resume=False),
            r"any: cannot be written \(File exists\); choose another place",
        ),
    ],
)
def test_problems_name_file_and_remedy(outside, name, content, call, message):
    (outside / name).write_text(content)
    with pytest.raises(TimmMVHybridError, match=message):
        call(RunDirectory(outside))
