"""README and docs/ tell the truth: their code runs, and their commands, flags, words of make and files exist."""

import re
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
from support.documentation import DOCS, PAGES, README, ROOT, command_lines, commands, flags_in_text, snippets

import timm_mvhybrid
from timm_mvhybrid.cli import main

WITH_PYTHON = [page for page in PAGES if any(not each.needs for each in snippets(page, "python"))]
COMMANDS = sorted({command for page in PAGES for command, _ in commands(page)})
# flags of other programs that the pages name
OF_OTHERS = {
    "--config",
    "--embed_dim",
    "--feature-plugin",
    "--model_name",
    "--nproc-per-node",
    "--target_patch_size",
}


def name(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(autouse=True)
def mixers():
    """What a page registers is gone after the test."""
    with mock.patch.dict(timm_mvhybrid.models.options.SSM_MIXERS):
        yield


@pytest.fixture(scope="module")
def help_text():
    """Command → its help, each asked for once."""
    texts = {}

    def get(command, capsys, monkeypatch):
        if command == "finetune":
            names = ("mint", "stamp", "report")
            return " ".join(get(f"finetune {name}", capsys, monkeypatch) for name in names)
        if command not in texts:
            monkeypatch.setenv("COLUMNS", "200")
            with pytest.raises(SystemExit) as stopped:
                main([*command.split(), "--help"])
            assert stopped.value.code == 0
            texts[command] = capsys.readouterr().out
        return texts[command]

    return get


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """From top to bottom in one namespace, as a reader types it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace = {"images": torch.randn(1, 3, 256, 256)}  # the README's reader has some
    for snippet in snippets(page, "python"):
        if not snippet.needs:
            exec(compile(snippet.code, str(snippet), "exec"), namespace)


def test_the_features_of_the_readme():
    namespace = {"images": torch.randn(1, 3, 256, 256)}
    with torch.inference_mode():
        exec(snippets(README, "python")[0].code, namespace)
    assert namespace["features"].shape == (1, 384)


def test_the_mixer_of_the_page_is_built_by_name():
    page = DOCS / "extend" / "mixer.md"
    exec(snippets(page, "python")[0].code, {})
    model = timm.create_model("test_mvhybrid", ssm_mixer="mean", num_classes=0).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 64)


@pytest.mark.parametrize("model_name", timm_mvhybrid.models.MODEL_NAMES)
def test_table_of_models(model_name):
    model = timm.create_model(model_name, device="meta")
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"| `{model_name}` | {model.layout()} | {millions:.1f} M |" in README.read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command, help_text, capsys, monkeypatch):
    shown = help_text(command, capsys, monkeypatch)
    flags = {flag for page in PAGES for found, given in commands(page) if found == command for flag in given}
    assert not [flag for flag in flags if not re.search(rf"{flag}(?![\w.-])", shown)]


def test_flags_in_the_text_exist(help_text, capsys, monkeypatch):
    ours = " ".join(help_text(command, capsys, monkeypatch) for command in COMMANDS)
    unknown = {
        f"{name(page)}: {flag}"
        for page in PAGES
        for flag in flags_in_text(page) - OF_OTHERS
        if not re.search(rf"{flag}(?![\w.-])", ours)
    }
    assert not unknown


def test_words_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    contributing = ROOT / "CONTRIBUTING.md"
    for page in [*PAGES, contributing]:
        words = {word for line in command_lines(page, "make") for word in line}
        named = {word for word in words if re.fullmatch("[a-z][a-z-]+", word)}
        assert named <= targets, name(page)


def test_files_that_the_readme_links_exist():
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README.read_text()):
        assert (ROOT / link).exists(), link


def test_the_two_commands_stand_in_the_readme():
    text = README.read_text()
    assert "pip install -e '.[slides]' && python examples/quickstart.py" in text
    assert "pip install -e '.[test]' && pytest -n auto" in text


def test_the_readme_stays_short():
    assert len(README.read_text().splitlines()) <= 150


def test_extras_of_the_install_page_are_those_of_the_package():
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^([a-z]+) = ", block, re.MULTILINE))
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "install.md").read_text(), re.MULTILINE)
    assert {word for row in rows for word in re.findall("`([a-z]+)`", row)} == extras


def test_citation_names_this_package():
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == timm_mvhybrid.__version__
    assert citation["license"] == "Apache-2.0"


def test_the_package_says_that_it_is_typed():
    assert (Path(timm_mvhybrid.__file__).parent / "py.typed").exists()
