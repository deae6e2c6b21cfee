"""The command line of a run, in this process."""

import json

import pytest
from support.generated_patches import trident_attributes, write_coordinates
from support.generated_slides import write_slide
from support.pretraining import NUM_STEPS, small, write_config, write_patches

from timm_mvhybrid.cli import main
from timm_mvhybrid.cli.pretrain import parse_pretrain

pytest.importorskip("lightly")


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches") / "patches.h5")


@pytest.fixture
def run(capsys):
    def run(*arguments):
        try:
            code = main(["pretrain", *map(str, arguments)])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def test_a_dry_run_prints_what_would_run_and_writes_nothing(patches, tmp_path, run):
    file = write_config(small(tmp_path / "run", patches), tmp_path / "config.json")
    code, output, _ = run("--config", file, "--dry-run", "--batch-size", 8, "--loss.centering", "centering")
    assert code == 0
    found = json.loads(output)
    assert found["config"]["batch_size"] == 8
    assert found["config"]["loss"]["centering"] == "centering"
    plan = found["plan"]
    assert plan["peak_learning_rate"] == pytest.approx(2e-3 * (8 / 1024) ** 0.5)
    assert plan["num_epochs"] == NUM_STEPS * 8 / 24
    assert plan["images_per_second"]["1"] == pytest.approx(NUM_STEPS * 8 / 86400)
    assert plan["memory_gib"]["activations"] > plan["memory_gib"]["teacher"] > 0
    assert not (tmp_path / "run").exists()


def test_slides_of_coordinate_files_lie_in_a_folder_of_their_own(tmp_path, run):
    for name in ("slides", "coords"):
        (tmp_path / name).mkdir()
    write_slide(tmp_path / "slides" / "slide.tif", size=(512, 512), tissue=(0, 0, 512, 512))
    corners = [[64 * (index % 8), 64 * (index // 8)] for index in range(63)] + [[480, 480]]
    write_coordinates(
        tmp_path / "coords" / "slide_patches.h5", corners, attributes=trident_attributes(64, 20, 20)
    )
    file = write_config(small(tmp_path / "run", tmp_path / "coords"), tmp_path / "config.json")
    code, _, error = run("--config", file, "--dry-run")
    assert code == 1
    assert "slide_patches.h5" in error
    assert "--data.slides FOLDER" in error
    for options, num_patches in (([], 64), (["--data.edge", "skip"], 63)):
        command = ["--config", file, "--dry-run", "--batch-size", 8, "--data.slides", tmp_path / "slides"]
        code, output, _ = run(*command, *options)
        assert code == 0
        assert json.loads(output)["plan"]["num_epochs"] == NUM_STEPS * 8 / num_patches


def test_a_finished_command_prints_one_json_object(patches, tmp_path, run):
    file = write_config(small(tmp_path / "run", patches, num_steps=2), tmp_path / "config.json")
    code, output, _ = run("--config", file)
    assert code == 0
    assert json.loads(output)["step"] == 2


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--data.sources", "missing.h5"], "missing.h5", 1),
        (["--batch-size", "0"], " is 0; it must be at least 1", 1),
        (["--model.name", "resnet18"], "resnet18", 1),
        (["--parallel.accumulate", "3"], "take a multiple of 3", 1),
        (["--nonsense"], "--nonsense", 2),
        (["--preset", "nonsense"], "nonsense", 2),
        (["--config", "missing.json"], "missing.json", 1),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(patches, tmp_path, run, arguments, message, code):
    file = write_config(small(tmp_path / "run", patches), tmp_path / "config.json")
    found, _, errors = run("--config", file, *arguments)
    assert found == code
    assert message in errors
    assert not (tmp_path / "run").exists()


def test_flags_go_before_the_file_and_the_file_before_the_preset(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("num_steps: 50\nbatch_size: 8\noptimizer: {base_learning_rate: 1e-3}\noutput: there\n")
    command = parse_pretrain(
        ["--preset", "smoke", "--config", str(file), "--batch-size", "2", "--data.sources", "a", "b"]
    )
    config = command.config
    assert (config.num_steps, config.batch_size, config.model.name) == (50, 2, "test_mvhybrid")
    assert config.optimizer.base_learning_rate == 1e-3
    assert config.data.sources == ("a", "b")
    assert str(config.output) == "there"


def test_help_names_every_section_with_its_units(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_pretrain(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for flag in (
        "--crops.global-size-px",
        "--optimizer.base-learning-rate",
        "--parallel.sharding",
        "--dry-run",
    ):
        assert flag in shown
