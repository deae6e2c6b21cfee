"""``timm-mvhybrid finetune`` in this process: what it parses, prints and refuses."""

import json
import subprocess
import sys

import pytest
from support.finetuning import mint_settings, stamp_settings, write_cohorts, write_config

from timm_mvhybrid.cli import main
from timm_mvhybrid.cli.finetune import parse_finetune

pytest.importorskip("lightly")
pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_cohorts(tmp_path_factory.mktemp("cohorts"))


@pytest.fixture
def run(capsys):
    def run(*arguments):
        try:
            code = main(["finetune", *map(str, arguments)])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def test_roots_model_and_checkpoint_have_short_names(tmp_path):
    arguments = ["mint", "A", "B", "--model", "vit12_small_patch16_256", "--checkpoint", "w.safetensors"]
    config = parse_finetune([*arguments, "--output", str(tmp_path)]).config
    assert config.data.sources == ("A", "B")
    assert config.model.name == "vit12_small_patch16_256"
    assert config.model.weights.name == "w.safetensors"
    assert (config.mint.anchor_weight, config.loss.dino_weight) == (1.0, 1.0)
    stamp = parse_finetune(["stamp", "A", "--pathways", "sets.gmt", "--output", str(tmp_path)]).config
    assert stamp.data.pathways.name == "sets.gmt"
    assert stamp.peak_learning_rate == pytest.approx(1e-4)


def test_a_dry_run_says_what_would_be_learned_and_held_out_and_writes_nothing(manifest, tmp_path, run):
    file = write_config(mint_settings(tmp_path / "run", manifest), tmp_path / "config.json")
    code, output, error = run("mint", "--config", file, "--dry-run", "--batch-size", 8)
    assert code == 0, error
    found = json.loads(output)
    assert found["config"]["batch_size"] == 8
    plan = found["plan"]
    assert plan["num_samples"] == 18
    assert plan["resolved"]["held_out"] == {"by": "study", "num_groups": 1, "studies": ["B"]}
    assert plan["resolved"]["panels"]["cells"]["cells_along_a_side"] == 2
    assert plan["trained_parameters"] <= plan["all_parameters"]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_adapters_trains_a_part(manifest, tmp_path, run):
    pytest.importorskip("peft")
    file = write_config(stamp_settings(tmp_path / "run", manifest), tmp_path / "config.json")
    code, output, error = run("stamp", manifest, "--config", file, "--dry-run")
    assert code == 0, error
    plan = json.loads(output)["plan"]
    assert plan["trained_parameters"] < 0.5 * plan["all_parameters"]
    assert plan["resolved"]["pathways"]["num_sets"] == 5


def test_a_run_prints_one_json_object_warns_of_random_weights_and_has_a_report(manifest, tmp_path, run):
    file = write_config(mint_settings(tmp_path / "run", manifest, num_steps=1), tmp_path / "config.json")
    code, output, error = run("mint", "--config", file)
    assert code == 0
    assert json.loads(output)["step"] == 1
    assert "starts from random weights" in error
    code, output, _ = run("report", tmp_path / "run")
    assert code == 0
    assert json.loads(output)["page"].endswith("index.html")


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["stamp", "{manifest}", "--output", "{run}"], "--data.pathways FILE.gmt", 1),
        (["mint", "nowhere", "--output", "{run}"], "nowhere: no such folder", 1),
        (["mint", "--output", "{run}"], "at least one", 2),
        (["mint", "{manifest}"], "--output", 2),
        (["mint", "{manifest}", "--output", "{run}", "--mint.anchor-weight=-1"], "at least 0", 2),
        (["report", "{run}"], "not the folder of a run of MINT or STAMP", 1),
        (["mint", "{manifest}", "--output", "{run}", "--resume", "must", "--preset", "smoke"], "", 1),
    ],
)
def test_problems_end_in_one_sentence(manifest, tmp_path, run, arguments, message, code):
    given = [one.format(manifest=manifest, run=tmp_path / "run") for one in arguments]
    found, _, error = run(*given)
    assert found == code
    assert message in " ".join(error.split())
    if code == 1:
        assert "Traceback" not in error
        assert [line for line in error.splitlines() if line.startswith("error: ")]
    assert not (tmp_path / "run").exists()


def test_help_names_units_and_defaults(run):
    code, output, _ = run("mint", "--help")
    assert code == 0
    text = " ".join(output.replace("│", " ").split())
    assert "--probe.max-train" in text
    assert "Side of the two global crops in px. (default: 256)" in text


WITHOUT_EXTRAS = """
import sys
import timm_mvhybrid

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"lightly", "peft", "sklearn", "anndata", "scanpy", "pyarrow"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from timm_mvhybrid.cli import main
if main(["models"]) != 0:
    sys.exit(3)
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_line_needs_no_extra_until_a_run_does(tmp_path):
    # `models` first, in the same process; 3 is its failure
    arguments = ["finetune", "mint", str(tmp_path), "--output", str(tmp_path / "run")]
    command = [sys.executable, "-c", WITHOUT_EXTRAS, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert "pip install 'timm-mvhybrid[" in run.stderr
    assert "Traceback" not in run.stderr
