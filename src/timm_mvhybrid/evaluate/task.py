"""What a task is: a name, options that are its command line, and a way from them to a result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from ..embed.embeddings import BatchReport
from ..export.companions import ST_FILE
from ..report import Presentation, Result, register_presentation
from ..runtime.digest import file_sha256
from ..runtime.stage import OnStage

Options = TypeVar("Options")
OnBatch = Callable[[str, BatchReport], None] | None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a task reports its progress.

    Attributes:
        on_batch: Called with the source's name after every batch of patches.
        on_stage: Called after every unit of scoring.
        on_warning: Called with one sentence that a user should know while the task goes on.
    """

    on_batch: OnBatch = None
    on_stage: OnStage = None
    on_warning: Callable[[str], None] | None = None


class Task(Presentation, ABC, Generic[Options]):
    """One kind of evaluation; a subclass in one file and its registration are all that a new one takes.

    Its first docstring line is the help of its command. Tables, intervals, paired comparisons, page, results.json,
    model card and command line follow from the ``Result`` that it returns; what it wants to show differently it overrides
    of ``Presentation``.

    Attributes:
        options: Frozen dataclass whose fields are the flags of the command; positional ones are marked by tyro.
    """

    options: ClassVar[type[Any]]

    def data(self, options: Options) -> Path:
        """Names the input's file or folder, from which the report's folder gets its name."""
        root: Path = getattr(options, "root")  # noqa: B009 - not every task's options have it
        return root

    def weights(self, options: Options) -> list[str]:
        """Says which weights will be evaluated, before time is spent on it.

        Returns:
            SHA-256 of the files of weights; files that are missing are left to those who read them.
        """
        models = getattr(options, "models", None)
        given = [Path(file) for file in models.checkpoint if file] if models is not None else []
        files = [file / ST_FILE if file.is_dir() else file for file in given]
        return [file_sha256(file) for file in files if file.is_file()]

    def num_images(self, options: Options) -> int | None:
        """Counts the images that a model would embed, before time is spent on it; None where that is not known."""
        return None

    @abstractmethod
    def run(self, options: Options, progress: Progress) -> Result | None:
        """Evaluates.

        Args:
            options: Options of the command.
            progress: Where to report progress.

        Returns:
            The result; None on ranks other than the first.
        """


_TASKS: dict[str, Task[Any]] = {}


def register_task(task: Task[Any]) -> Task[Any]:
    """Makes a task known: to ``timm-mvhybrid evaluate`` and to all that shows results.

    Args:
        task: The task; replaces one of the same name.

    Returns:
        The same.
    """
    _TASKS[task.name] = task
    register_presentation(task)
    return task


def registered_tasks() -> dict[str, Task[Any]]:
    """Lists the tasks.

    Returns:
        Name → task, in the order of their registration.
    """
    return dict(_TASKS)
