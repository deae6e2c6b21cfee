"""``timm-mvhybrid study``: a file of variants, seeds and evaluations → cells and one comparison."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, ClassVar

from rich.console import Console
from tyro.conf import Positional, arg, subcommand

from ..evaluate import Progress
from ..runtime.ranks import Ranks
from ..study.errors import StudyError
from ..study.shipped import read_ready, ready_studies
from ..training.stop_signal import EXIT_CODE
from .flags import UsageError
from .messages import report, say
from .progress import RunDisplay


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Which study."""

    study: Annotated[Positional[str], arg(metavar="STUDY.yaml|ready:NAME")]
    """The study's file, or one that comes with the package ('timm-mvhybrid study show' lists them)."""
    output: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of cells and page, in place of the file's."""
    sources: Annotated[tuple[str, ...], arg(metavar="PATH ...")] = ()
    """Sources of patches of all cells, in place of the file's pretrain.data.sources."""
    evaluate: Annotated[tuple[str, ...], arg(metavar="NAME=ROOT ...")] = ()
    """Data of evaluations, in place of the file's, such as expression=ROOT."""
    settings: Annotated[tuple[str, ...], arg(name="set", metavar="NAME=VALUE ...")] = ()
    """Anything else in place of the file's, such as pretrain.num_steps=1000 or seeds='[0, 1]'; values are YAML."""

    def read(self) -> Any:
        """Reads the study."""
        from ..study.study_file import read_study, yaml_reader

        yaml = yaml_reader()
        settings = {}
        for name, text in _pairs("set", self.settings).items():
            try:
                settings[name] = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise StudyError(f"`settings`: {name}={text} is not YAML; quote it") from error
        return read_study(
            self.study,
            output=self.output,
            sources=self.sources,
            roots=_pairs("evaluate", self.evaluate),
            settings=settings,
        )


def _pairs(flag: str, words: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise UsageError(f"--{flag} is {word!r}; it must be NAME=VALUE")
        found[name] = value
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Run the cells of a study that are not finished, and make its page; also under torchrun."""

    when_interrupted: ClassVar[str] = "start it again, and each cell goes on from its last checkpoint"

    options: Annotated[StudyOptions, arg(name="")]
    cell: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Cells to run; all by default."""
    cell_index: Annotated[int | None, arg(metavar="N")] = None
    """The one cell to run by its number from 0, as --dry-run lists them; for arrays of a scheduler."""
    redo: bool = False
    """Run cells anew that were finished before their definition changed; what they left is moved to replaced/."""
    dry_run: bool = False
    """List cells, and what they will take by steps that are timed here; write nothing."""

    def run(self) -> int | None:
        """Runs the command."""
        # of the extra `pretrain`, which the other commands do without
        from ..study.checking import check_study
        from ..study.estimate import estimate_study, format_estimate
        from ..study.running import run_study

        study = self.options.read()
        ranks = Ranks.from_environment()
        names = list(self.cell)
        if self.cell_index is not None:
            if names or not 0 <= self.cell_index < len(study.cells):
                raise UsageError(
                    f"--cell-index is {self.cell_index}; it must be from 0 to {len(study.cells) - 1}, without --cell"
                )
            names = [study.cells[self.cell_index].name]
        if self.dry_run:
            checked = check_study(study, ranks.world_size)
            estimate = estimate_study(checked, note=_note if ranks.is_first else lambda message: None)
            if ranks.is_first and sys.stdout.isatty():
                print(format_estimate(estimate))
            elif ranks.is_first:
                print(json.dumps(_plain(dataclasses.asdict(estimate)), ensure_ascii=False))
            return None
        outcome = run_study(
            study,
            cells=names,
            redo=self.redo,
            evaluating=_evaluating if ranks.is_first else lambda: nullcontext(Progress()),
            say=lambda message: say(f"warning: {message}"),
            note=_note,
        )
        if ranks.is_first:
            report({key: _shown(value) for key, value in dataclasses.asdict(outcome).items()})
        if outcome.stopped_by is not None:
            return EXIT_CODE
        return 1 if outcome.failed else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """Make the page of the cells that are finished, and say which are not."""

    options: Annotated[StudyOptions, arg(name="")]

    def run(self) -> None:
        """Runs the command."""
        from ..study.checking import check_study
        from ..study.page import write_page

        report({"page": str(write_page(check_study(self.options.read())))})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """Say how far each cell is."""

    options: Annotated[StudyOptions, arg(name="")]

    def run(self) -> None:
        """Runs the command."""
        from ..study.checking import check_study

        checked = check_study(self.options.read())
        report({name: checked.state(name) for name in checked.cells})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """List the studies that come with the package, or print the file of one, to be changed."""

    name: Annotated[Positional[str | None], arg(metavar="[NAME]")] = None
    """Which one; all are listed by default."""

    def run(self) -> None:
        """Runs the command."""
        if self.name is None:
            report(ready_studies())
        else:
            print(read_ready(self.name), end="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Compare many pretraining runs: variants × seeds, each pretrained, exported and evaluated."""

    command: Annotated[
        Annotated[Run, subcommand("run")]
        | Annotated[Page, subcommand("page")]
        | Annotated[Status, subcommand("status")]
        | Annotated[Show, subcommand("show")],
        arg(name=""),
    ]

    when_interrupted: ClassVar[str] = Run.when_interrupted

    def run(self) -> int | None:
        """Runs the command."""
        code: int | None = self.command.run()
        return code


def _note(message: str) -> None:
    """Says what begins, to someone who watches."""
    if sys.stderr.isatty():
        say(message)


@contextmanager
def _evaluating() -> Iterator[Progress]:
    """Shows an evaluation on a terminal."""
    with RunDisplay(Console(stderr=True)) as display:
        yield Progress(
            on_batch=lambda source, batch: display.update(batch, source),
            on_stage=display.advance,
            on_warning=lambda sentence: say(f"warning: {sentence}"),
        )


def _shown(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _plain(value: Any) -> Any:
    """Makes times that were not measured null, which JSON has."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value
