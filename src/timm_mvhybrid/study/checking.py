"""All that can be found out before the first cell starts: models that can be made, data that are there, cells that changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..data.manifest import open_samples
from ..models import ALL_MODEL_NAMES
from ..pretrain.config import PretrainConfig
from ..report.drawing import require_matplotlib
from ..runtime.atomic_file import make_folder
from ..runtime.errors import OutputError, PretrainError, TimmMVHybridError
from ..ssl.backbone import create_backbone
from ..training.run_directory import RunDirectory
from .cell_record import read_failure, read_record
from .errors import StudyError
from .same_batches import data_group
from .study_file import Cell, Study, digest_of

State = Literal["done", "begun", "open", "failed", "changed"]


@dataclass(frozen=True, kw_only=True)
class CheckedCell:
    """A cell that can be run, and what is known of it before.

    Attributes:
        cell: The cell.
        num_parameters: Parameters of the backbone.
        num_samples: Patches of its sources.
        data_fingerprint: Of the patches.
        definition: Identifies its pretraining.
        data_group: Cells of the same group must see the same.
    """

    cell: Cell
    num_parameters: int
    num_samples: int
    data_fingerprint: str
    definition: str
    data_group: str


@dataclass(frozen=True, kw_only=True)
class CheckedStudy:
    """A study whose cells can be run.

    Attributes:
        study: The study.
        cells: Its cells by name.
        tasks: Evaluation → what identifies its options.
    """

    study: Study
    cells: Mapping[str, CheckedCell]
    tasks: Mapping[str, str]

    def state(self, name: str) -> State:
        """Says how far a cell is.

        Returns:
            ``done``; ``changed`` where it is finished by another definition; ``failed`` where its last start ended with an
            error; ``begun``; or ``open``.
        """
        checked = self.cells[name]
        folder = checked.cell.folder
        record = read_record(folder)
        if record is not None:
            if self.changes(name):
                return "changed"
            return "done" if all(task in record.tasks for task in self.tasks) else "begun"
        if read_failure(folder) is not None:
            return "failed"
        return "begun" if RunDirectory(checked.cell.config.output).holds_run() else "open"

    def changes(self, name: str) -> list[str]:
        """Names what a finished cell was made by that the study now says differently."""
        checked = self.cells[name]
        record = read_record(checked.cell.folder)
        if record is None:
            return []
        found = ["its pretraining"] if record.definition != checked.definition else []
        if record.data_fingerprint != checked.data_fingerprint:
            found = ["its data"]
        return found + [
            f"evaluation {task}"
            for task, digest in self.tasks.items()
            if record.tasks.get(task, digest) != digest
        ]


def check_study(study: Study, world_size: int = 1) -> CheckedStudy:
    """Finds out whether every cell can be run: its model is made without memory, its data are opened, evaluations looked up.

    Args:
        study: The study.
        world_size: Processes of each cell.

    Raises:
        StudyError: One cannot; the message names it.
        PretrainError: The batch cannot be divided among the processes.
        DataError: Patches cannot be opened.
        OutputError: The output folder cannot be made.
    """
    require_matplotlib()
    for task in study.tasks:
        task.check()
    opened: dict[str, tuple[int, str]] = {}
    sizes: dict[str, int] = {}
    cells = {}
    for cell in study.cells:
        config = cell.config
        where = f"{study.where}: variant {cell.variant}"
        try:
            config.images_per_pass(world_size)
        except PretrainError as error:
            raise PretrainError(f"{where}: {error}") from error
        key = digest_of([config.data.sources, config.data.slides, config.data.edge])
        if key not in opened:
            samples = open_samples(config.data.sources, slides=config.data.slides, edge=config.data.edge)
            opened[key] = len(samples), samples.fingerprint()
        number, fingerprint = opened[key]
        key = digest_of([config.model, config.crops.global_size_px])
        if key not in sizes:
            sizes[key] = count_parameters(config, where)
        cells[cell.name] = CheckedCell(
            cell=cell,
            num_parameters=sizes[key],
            num_samples=number,
            data_fingerprint=fingerprint,
            definition=cell.definition(fingerprint),
            data_group=data_group(config, fingerprint),
        )
    tasks = {task.name: digest_of(task.definition()) for task in study.tasks}
    return CheckedStudy(study=study, cells=cells, tasks=tasks)


def count_parameters(config: PretrainConfig, where: str) -> int:
    """Makes a cell's backbone without memory for its weights, and counts them.

    Raises:
        StudyError: It cannot be made, trained or exported.
    """
    name, arguments = config.model.name, config.model.arguments
    if name not in ALL_MODEL_NAMES:
        raise StudyError(
            f"{where}: model.name is {name!r}; a study exports its cells, and takes the models that 'timm-mvhybrid models' lists"
        )
    if config.model.weights is not None and not config.model.weights.is_file():
        raise StudyError(f"{where}: model.weights is {config.model.weights}; there is no such file")
    try:
        options = {"img_size": config.crops.global_size_px, **arguments, "device": "meta"}
        backbone = create_backbone(name, options)
    except (TimmMVHybridError, TypeError, ValueError, AssertionError) as error:
        raise StudyError(
            f"{where}: {name} cannot be made with {json.dumps(dict(arguments))}: {error}"
        ) from error
    return sum(value.numel() for key, value in backbone.named_parameters() if key != "mask_token")


def check_output(study: Study) -> None:
    """Makes the folder of a study.

    Raises:
        OutputError: The disk does not take it.
    """
    make_folder(study.output / "cells")
    probe = study.output / "cells"
    if not probe.is_dir():
        raise OutputError(f"{probe}: is not a folder; choose another `output`")
