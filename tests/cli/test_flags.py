"""Parameters in the library's messages → flags on the command line."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args, get_type_hints
from unittest import mock

import pytest
from PIL import Image
from tyro.conf import Positional

import timm_mvhybrid
from timm_mvhybrid.cli import COMMANDS, main, main_of_task
from timm_mvhybrid.cli.evaluate import task_command
from timm_mvhybrid.cli.finetune import flags_of_finetune
from timm_mvhybrid.cli.flags import flags_of, in_flags
from timm_mvhybrid.cli.prepare import PrepareCommand
from timm_mvhybrid.evaluate import Task, registered_tasks
from timm_mvhybrid.runtime.errors import ParameterError

SOURCE = Path(timm_mvhybrid.__file__).parent


def translated(message, command="embed"):
    return in_flags(message, flags_of(COMMANDS[command], sections=command == "pretrain"))


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        ("embed", "take `edge='skip'`", "take --edge skip"),
        ("embed", "`batch_size` must be at least 1, not 0", "--batch-size must be at least 1, not 0"),
        ("embed", "replace it with `overwrite=True`", "replace it with --overwrite"),
        ("embed", "give `checkpoint=FILE` or `pretrained`", "give --checkpoint FILE or --pretrained"),
        ("embed", "choose `pool='avg'`", "choose --global-pool avg"),
        ("embed", "`resolution_um_per_px` is 0.1", "--resolution is 0.1"),
        ("embed", "`slide='a slide.svs'`", "--slide 'a slide.svs'"),
        ("embed", "name it by `input`", "name it by INPUT"),
        ("embed", "`num_components` and `x=1` are not ours", "`num_components` and `x=1` are not ours"),
        ("evaluate", "use `num_components=None`, `num_components='auto'`", "use --num-components none, --num-components auto"),
        ("evaluate", "`alpha=None` or `alpha=0.5`", "--alpha recipe or --alpha 0.5"),
        ("evaluate", "`options.probe.num_folds` is 1", "--num-folds is 1"),
        ("evaluate", "give `protocols=('random', 'loso')`", "give --protocols random,loso"),
        ("evaluate", "name a folder of `bags`", "name a folder of DIR..."),
        ("pretrain", "`batch_size` is 3", "--batch-size is 3"),
        ("pretrain", "`data.slides=FOLDER`", "--data.slides FOLDER"),
        ("pretrain", "`global_scale=(0.1, 1.0)`", "--crops.global-scale 0.1 1.0"),
        ("pretrain", "set `head.learn_gain=False`", "set --head.no-learn-gain"),
        ("pretrain", "set `tf32=True`", "set --parallel.tf32"),
        ("pretrain", "use `config_file`", "use --config"),
        # of several sections, and so of none
        ("pretrain", "`num_workers` and `name`", "--data.num-workers and `name`"),
        ("phantom", "`num_spots` must be at least 1", "--num-spots must be at least 1"),
        ("export", "`branch='student'`", "--weights student"),
        ("report", "choose another `output`", "choose another --output"),
    ],
)  # fmt: skip
def test_translation(command, message, expected):
    assert translated(message, command) == expected


def help_of(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def shown_flags(text):
    """Those at the beginning of an entry, with their other spellings."""
    return set(re.findall(r"(?m)(?:^ ?|  |│ |, )(--[a-z][\w.-]*)", text)) - {"--help"}


SHORT = {"--model", "--checkpoint", "--pathways"}
"""Beside the names of their sections."""
ALIASES = {"--run-dir", "--studies", "--samples", "--spots", "--genes"}


@pytest.mark.parametrize(
    "name", sorted(set(COMMANDS) - {"analyse", "evaluate", "finetune", "prepare", "report", "study"})
)
def test_the_flags_are_those_of_the_help(name, capsys, monkeypatch):
    sections = name == "pretrain"
    known = {
        flag.word for flag in flags_of(COMMANDS[name], sections=sections).values() if not flag.is_positional
    }
    shown = shown_flags(help_of([name], capsys, monkeypatch)) - (ALIASES - known)
    assert known == {flag for flag in shown if not re.search(r"(--|\.)no-", flag)}


@pytest.mark.parametrize("name", registered_tasks())
def test_the_flags_of_a_task_are_those_of_its_help(name, capsys, monkeypatch):
    known = flags_of(task_command(registered_tasks()[name])).values()
    shown = shown_flags(help_of(["evaluate", name], capsys, monkeypatch))
    assert {flag.word for flag in known if not flag.is_positional} == shown


@pytest.mark.parametrize("name", ["mint", "stamp", "report"])
def test_the_flags_of_fine_tuning_are_those_of_the_help(name, capsys, monkeypatch):
    known = {flag.word for flag in flags_of_finetune([name]).values() if not flag.is_positional}
    shown = shown_flags(help_of(["finetune", name], capsys, monkeypatch))
    assert known == {flag for flag in shown if not re.search(r"(--|\.)no-", flag)} - SHORT


@pytest.mark.parametrize("name", get_args(PrepareCommand))
def test_the_flags_of_preparing_are_those_of_the_help(name, capsys, monkeypatch):
    command, subcommand = get_args(name)
    known = {flag.word for flag in flags_of(command).values() if not flag.is_positional}
    assert known == shown_flags(help_of(["prepare", subcommand.name], capsys, monkeypatch))


SUBCOMMANDS = [
    (group, *get_args(member))
    for group in ("analyse", "study")
    for member in get_args(get_args(get_type_hints(COMMANDS[group], include_extras=True)["command"])[0])
]


@pytest.mark.parametrize(("group", "command", "subcommand"), SUBCOMMANDS)
def test_the_flags_of_a_subcommand_are_those_of_its_help(group, command, subcommand, capsys, monkeypatch):
    known = {flag.word for flag in flags_of(command).values() if not flag.is_positional}
    shown = shown_flags(help_of([group, subcommand.name], capsys, monkeypatch))
    assert known == {flag for flag in shown if not re.search(r"(--|\.)no-", flag)}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_parameter_has_one_flag_in_all_commands(name):
    """``--checkpoint`` is never ``--weights`` elsewhere."""
    everywhere = {
        parameter: flag.word
        for command in set(COMMANDS) - {"finetune", "pretrain"}
        for parameter, flag in flags_of(COMMANDS[command]).items()
        if not flag.is_positional
    }
    for parameter, flag in flags_of(COMMANDS[name], sections=name in ("finetune", "pretrain")).items():
        section, _, last = flag.word.removeprefix("--").rpartition(".")
        if parameter in everywhere and not flag.is_positional and not section:
            assert f"--{last}" == everywhere[parameter]


@pytest.mark.parametrize("command", ["embed", "tile", "pretrain", "evaluate expression", "export", "export-onnx", "publish", "phantom", "plot", "prepare visium", "prepare st", "report compare"])  # fmt: skip
def test_what_is_read_and_written_has_the_same_name_everywhere(command, capsys, monkeypatch):
    shown = shown_flags(help_of(command.split(), capsys, monkeypatch))
    assert "--output" in shown or command == "publish"
    if command in ("embed", "evaluate expression", "export", "export-onnx"):
        assert {"--model", "--checkpoint"} <= shown


@pytest.mark.parametrize(
    ("command", "flag"),
    [(["export-onnx", "--output", "x"], "--model"), (["export", "--model", "test_vit12", "--output", "x"], "--checkpoint"), (["phantom"], "--output")],
)  # fmt: skip
def test_an_old_positional_argument_is_its_flag(command, flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    place = "nowhere/there"
    assert main([*command, place]) == 1
    by_position = capsys.readouterr().err
    assert place in by_position
    assert main([*command, flag, place]) == 1
    assert capsys.readouterr().err == by_position
    assert main(command) == 2
    assert f"{flag} is required" in capsys.readouterr().err
    assert main([*command, place, flag, place]) == 2
    assert f"{flag} is given twice" in capsys.readouterr().err


# flags of other programs, in messages that tell what to type: pip's, git's, make's and torchrun's, tar's, raw2ometiff's
OF_OTHERS = {
    "--force-reinstall", "--no-build-isolation", "--no-cache-dir", "--no-deps",
    "--binary", "--no-color", "--no-ext-diff", "--porcelain", "--verify",
    "--nproc-per-node", "--sparse", "--rgb",
    # pipelines of others
    "--embed_dim", "--model_name", "--target_patch_size",
}  # fmt: skip
# commands that stand in a message as a whole may name their flags
COMMAND = re.compile(r"'timm-mvhybrid [^']*'?")
# parsers of their own, and spellings of earlier versions
PARSERS = {
    "synthetic/options.py": {"--studies", "--samples", "--spots", "--genes"},
    "finetune/config.py": {"--pathways", "--model", "--checkpoint"},
    "integrations/clam.py": {"--checkpoint"},
    "integrations/kaiko_eva.py": {"--configuration"},
}


def texts_of(path):
    """String literals without docstrings; the pieces of an f-string together."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        if isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
            yield (
                node.lineno,
                "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values),
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.lineno, node.value


def test_the_library_names_parameters_and_not_flags():
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith("cli/"):
            continue
        for line, text in texts_of(path):
            flags = set(re.findall(r"--[a-z][\w.-]*", COMMAND.sub("", text)))
            found += [f"{name}:{line}: {flag}" for flag in flags - OF_OTHERS - PARSERS.get(name, set())]
    assert not found, "\n".join(found)


ARGUMENTS = {"slides": ["a", "--labels", "b.csv"], "survival": ["a", "--follow-up", "b.csv"]}


@pytest.mark.parametrize("name", registered_tasks())
def test_every_task_refuses_a_negative_seed(name, capsys):
    words = ARGUMENTS.get(name, ["a", "--model", "test_vit12"])
    assert main(["evaluate", name, *words, "--seed", "-1"]) == 1
    assert capsys.readouterr().err == f"error: --seed is -1; it must be from 0 to {2**32 - 1}\n"


def test_what_the_library_says_in_passing_names_flags_too(tmp_path, monkeypatch, capsys):
    """Warnings, not only errors."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("patch.png")
    arguments = ["--model", "test_vit12", "--output", "out.h5", "--device", "cpu", "--num-workers", "0"]
    assert main(["embed", ".", *arguments]) == 0
    assert "give --checkpoint FILE or --pretrained\n" in capsys.readouterr().err


def test_a_task_of_ones_own_is_told_in_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    @dataclass(frozen=True, kw_only=True)
    class Options:
        root: Positional[Path]
        num_points: int = 3

    class Points(Task[Options]):
        """Count points."""

        name, title, options = "points", "Points", Options

        def run(self, options, progress):
            raise ParameterError("`num_points=4` is needed; `num_spots` is another's")

    with mock.patch.dict("timm_mvhybrid.evaluate.task._TASKS"):
        assert main_of_task(Points(), ["there"]) == 1
    assert capsys.readouterr().err == "error: --num-points 4 is needed; `num_spots` is another's\n"
