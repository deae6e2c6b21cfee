"""What a study will take, before it runs: steps, images, disk, and time from steps that were really done here."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch

from ..embed.baselines import COLOUR
from ..embed.model_input import choose_device
from ..pretrain.config import PretrainConfig
from ..pretrain.plan import make_plan
from ..pretrain.train import DINOv2Objective
from ..runtime.errors import TimmMVHybridError
from ..runtime.ranks import Ranks
from ..training.checkpoint import TrainState
from ..training.loss_scale import LossScale
from ..training.optimizer import make_adamw
from ..training.step import TrainStep
from ..training.throughput import Throughput
from ..training.world import join_world
from .cell_record import CellRecord, read_record
from .checking import CheckedStudy, State
from .study_file import digest_of

_FLOAT32_BYTES = 4
# student and its two moments, and the teacher
_COPIES = 4
# after the first step, which compiles kernels and starts workers
_MIN_STEPS, _BUDGET_S = 2, 10.0
_EMBEDDED = 8


@dataclass(frozen=True, kw_only=True)
class CellEstimate:
    """What a cell will take.

    Attributes:
        cell: Its name.
        state: How far it is.
        num_parameters: Parameters of the backbone.
        num_steps: Steps.
        num_images: Images of all steps.
        disk_gib: Checkpoints, weights and export.
        pretrain_seconds: Time of all steps.
        embed_seconds: Time to embed the images of the evaluations; None where their number is not known.
        basis: Where the times are from: this cell, a finished cell of the variant, or steps that were timed.
    """

    cell: str
    state: State
    num_parameters: int
    num_steps: int
    num_images: int
    disk_gib: float
    pretrain_seconds: float
    embed_seconds: float | None
    basis: str


@dataclass(frozen=True, kw_only=True)
class StudyEstimate:
    """What a study will take.

    Attributes:
        cells: Of each cell.
        seconds: Of the cells that are not finished, one after the other, by what was measured.
        disk_gib: Of all cells.
        not_included: What the time does not hold, one sentence each.
    """

    cells: tuple[CellEstimate, ...]
    seconds: float
    disk_gib: float
    not_included: tuple[str, ...]


def estimate_study(
    checked: CheckedStudy, *, measure: bool = True, note: Callable[[str], None] = lambda message: None
) -> StudyEstimate:
    """Works out what a study will take, without writing anything.

    Of each model that no finished cell tells the speed of, a few steps are done on the study's own data, on this machine
    and with this number of processes, and a batch is embedded.

    Args:
        checked: The study.
        measure: Whether to do so; without, times that no finished cell tells are NaN.
        note: Called with a sentence before each measurement.

    Raises:
        TimmMVHybridError: A cell's model cannot be trained here.
    """
    study = checked.study
    records = {cell.name: read_record(cell.folder) for cell in study.cells}
    num_images = {
        task.name: task.task.num_images(task.options(COLOUR, cache=study.output)) for task in study.tasks
    }
    known = [number for number in num_images.values() if number is not None]
    timed: dict[str, tuple[float, float, float]] = {}
    cells = []
    for cell in study.cells:
        config = cell.config
        key = digest_of([config.model, config.crops, config.head, config.batch_size, config.parallel])
        own = records[cell.name]
        like = own or next(
            (one for other in study.cells if other.variant == cell.variant and (one := records[other.name])),
            None,
        )
        if key not in timed:
            timed[key] = _measured(config, like is None and measure, note)
        step_seconds, image_seconds, weights_gib = timed[key]
        basis = "steps timed here"
        if like is not None:
            step_seconds, image_seconds = _of_record(like, config)
            basis = "this cell" if own is not None else f"cell {like.cell}"
        elif not measure:
            basis = "not measured"
        kept = (
            config.checkpoint.keep + 1
            if config.checkpoint.keep
            else -(-config.num_steps // config.checkpoint.every_steps)
        )
        cells.append(
            CellEstimate(
                cell=cell.name,
                state=checked.state(cell.name),
                num_parameters=checked.cells[cell.name].num_parameters,
                num_steps=config.num_steps,
                num_images=config.num_steps * config.batch_size,
                disk_gib=kept * weights_gib
                + 2 * checked.cells[cell.name].num_parameters * _FLOAT32_BYTES / 2**30,
                pretrain_seconds=step_seconds * config.num_steps,
                embed_seconds=sum(known) * image_seconds if len(known) == len(num_images) else None,
                basis=basis,
            )
        )
    left = [one for one in cells if one.state not in ("done",)]
    return StudyEstimate(
        cells=tuple(cells),
        seconds=sum(one.pretrain_seconds + (one.embed_seconds or 0.0) for one in left),
        disk_gib=sum(one.disk_gib for one in cells),
        not_included=_not_included(num_images),
    )


def format_estimate(estimate: StudyEstimate) -> str:
    """Lays an estimate out for reading."""
    width = max(len(one.cell) for one in estimate.cells)
    lines = [
        f"{one.cell:<{width}}  {one.state:<7} {one.num_parameters / 1e6:8.2f} M  {one.num_steps:>9,} steps "
        f"{one.num_images:>13,} images  {one.disk_gib:7.2f} GiB  {_time(one.pretrain_seconds):>9} pretraining  "
        f"{'?' if one.embed_seconds is None else _time(one.embed_seconds):>9} embedding  ({one.basis})"
        for one in estimate.cells
    ]
    lines.append(
        f"left: about {_time(estimate.seconds)}, one cell after the other; disk of all cells: about {estimate.disk_gib:.2f} GiB"
    )
    return "\n".join([*lines, *(f"not included: {one}" for one in estimate.not_included)])


def _time(seconds: float) -> str:
    if seconds != seconds:
        return "?"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _not_included(num_images: dict[str, int | None]) -> tuple[str, ...]:
    unknown = [name for name, number in num_images.items() if number is None]
    found = [
        "reading and decoding of the evaluations' images, probes, export, checkpoints and start of each cell"
    ]
    if unknown:
        found.append(f"embedding of {', '.join(unknown)}, whose images are not counted")
    return (
        *found,
        "workers read ahead, so that data that are slower than the steps show only in longer runs",
    )


def _of_record(record: CellRecord, config: PretrainConfig) -> tuple[float, float]:
    """Takes the time of a step and of an embedded image from a finished cell; the latter with the evaluation around it."""
    num_patches = sum(record.result(task).models[0].num_patches for task in record.results)
    seconds = sum(value for name, value in record.seconds.items() if name.startswith("evaluate"))
    return record.training_seconds / (record.num_images / config.batch_size), seconds / max(num_patches, 1)


def _measured(
    config: PretrainConfig, measure: bool, note: Callable[[str], None]
) -> tuple[float, float, float]:
    """Times steps and an embedded image of a model, and says what a checkpoint takes in GiB."""
    plan = make_plan(config, Ranks.from_environment().world_size)
    size = _COPIES * (plan.backbone_parameters + plan.head_parameters) * _FLOAT32_BYTES / 2**30
    if not measure:
        return float("nan"), float("nan"), size
    note(f"timing steps of {config.model.name}")
    return time_steps(config), _time_embedding(config), size


def time_steps(config: PretrainConfig) -> float:
    """Does a few real steps of a run, without writing anything.

    Returns:
        Seconds a step, without the first one.

    Raises:
        TimmMVHybridError: The model cannot be trained here, or its loss is not finite.
    """
    # the schedules are those of the run; what was learned is dropped
    with join_world(config.parallel) as world:
        objective = DINOv2Objective(replace(config, monitor=replace(config.monitor, probe=None)), world)
        state = TrainState(
            objective=objective,
            optimizer=make_adamw(objective.parameter_groups(), betas=config.optimizer.betas),
            loss_scale=LossScale(enabled=config.parallel.precision == "fp16"),
        )
        step = TrainStep(config, world, state)
        throughput = Throughput(world.device)
        # as many as workers may have read ahead
        most = min(config.num_steps, 2 * config.data.num_workers + 1 + _MIN_STEPS)
        done, start = 0, time.perf_counter()
        with closing(objective.batches(0)) as batches:
            for number in range(most):
                step(number, batches, throughput)
                if world.device.type == "cuda":
                    torch.cuda.synchronize(world.device)
                if number == 0 and most > 1:
                    start = time.perf_counter()
                    continue
                done += 1
                spent = time.perf_counter() - start
                if world.any(done >= _MIN_STEPS and spent > _BUDGET_S):
                    break
        return world.from_first((time.perf_counter() - start) / max(done, 1))


@torch.inference_mode()
def _time_embedding(config: PretrainConfig) -> float:
    """Times the forward pass of the backbone, seconds an image; without reading images."""
    try:
        device = choose_device("auto")
    except TimmMVHybridError:
        device = torch.device("cpu")
    options: dict[str, Any] = {"img_size": config.crops.global_size_px, **config.model.arguments}
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(config.model.name, num_classes=0, **options).eval().to(device)
    side = model.patch_embed.img_size
    images = torch.zeros(_EMBEDDED, 3, *side, device=device)
    model(images)
    start = time.perf_counter()
    model(images).sum().item()
    return (time.perf_counter() - start) / _EMBEDDED
