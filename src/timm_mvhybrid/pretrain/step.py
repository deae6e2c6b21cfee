"""One optimiser step: batches of crops → losses, gradients, student, teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..runtime.errors import PretrainError
from ..ssl.augmentation import DeviceAugmentation
from ..ssl.crops import CropBatch
from ..ssl.masking import masks_of_step
from ..ssl.objective import Losses, compute_losses
from ..ssl.student_teacher import update_teacher
from ..training.checkpoint import TrainState
from ..training.optimizer import apply_schedules, clip_gradients
from ..training.parallelize import DTYPES
from ..training.schedules import cosine_schedule, linear_warmup
from ..training.throughput import Throughput
from ..training.world import World
from .config import PretrainConfig
from .monitor import as_numbers, prototype_usage, teacher_entropy

# random numbers of a step are drawn anew from the seed, the step and the process, so that resuming needs no state
_STEP_SEED_FACTOR = 1_000_003


class NonFiniteError(PretrainError):
    """Losses or gradients of a step are NaN or infinite.

    Args:
        message: Which, and what to do.
        batches: The crops of the step, as this process saw them.
    """

    def __init__(self, message: str, batches: list[CropBatch]) -> None:
        super().__init__(message)
        self.batches = batches


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """What changes with the step alone.

    Args:
        learning_rate: Of AdamW, before the groups' multipliers.
        last_layer_learning_rate: Of the prototypes; 0 while they are frozen.
        weight_decay: Of AdamW, before the groups' multipliers.
        teacher_momentum: Of the moving average.
        teacher_temperature: Of the teacher's targets.
    """

    learning_rate: float
    last_layer_learning_rate: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float

    @classmethod
    def at(cls, step: int, config: PretrainConfig) -> Schedules:
        """Evaluates the schedules of a run.

        Args:
            step: Number of finished steps.
            config: The run.
        """
        recipe, num_steps = config.optimizer, config.num_steps
        rate: dict[str, Any] = dict(
            start=config.peak_learning_rate,
            end=recipe.final_learning_rate,
            num_steps=num_steps,
            warmup_steps=recipe.warmup_steps,
        )
        return cls(
            learning_rate=cosine_schedule(step, **rate),
            last_layer_learning_rate=cosine_schedule(
                step, **rate, frozen_steps=recipe.freeze_last_layer_steps
            ),
            weight_decay=cosine_schedule(
                step, start=recipe.weight_decay, end=recipe.final_weight_decay, num_steps=num_steps
            ),
            teacher_momentum=cosine_schedule(
                step, start=recipe.teacher_momentum, end=recipe.final_teacher_momentum, num_steps=num_steps
            ),
            teacher_temperature=linear_warmup(
                step,
                start=config.loss.teacher_temperature_start,
                end=config.loss.teacher_temperature,
                num_steps=config.loss.teacher_temperature_warmup_steps,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves to look at.

    Args:
        losses: Parts of the loss, averaged over this process's backward passes; scalars on the device.
        norms: Gradient norms before clipping, of the whole gradients.
        schedules: What the step used.
        last: The losses of the last backward pass, with targets and features.
        skipped: Whether the weights were left as they were, for float16 overflowed.
        loss_scale: Factor of the loss, behind the step.
    """

    losses: Mapping[str, Tensor]
    norms: Mapping[str, float]
    schedules: Schedules
    last: Losses
    skipped: bool
    loss_scale: float

    def summary(self) -> dict[str, float]:
        """Turns losses and teacher statistics into numbers."""
        probabilities = self.last.teacher_probabilities()
        return {
            **{f"loss/{name}": value for name, value in as_numbers(self.losses).items()},
            "teacher/entropy": teacher_entropy(probabilities),
            "teacher/prototype_usage": prototype_usage(probabilities),
        }


class TrainStep:
    """Does one step after the other.

    Args:
        config: The run.
        world: The processes.
        state: What is trained.
        augment: Colour, blur and normalisation on the device.
        grid: Rows and columns of patches of a global crop.
    """

    def __init__(
        self,
        config: PretrainConfig,
        world: World,
        state: TrainState,
        augment: DeviceAugmentation,
        grid: tuple[int, int],
    ) -> None:
        self.config = config
        self.world = world
        self.state = state
        self.augment = augment
        self.grid = grid

    def __call__(self, step: int, batches: Iterator[CropBatch], throughput: Throughput) -> StepResult:
        """Does a step; every process calls it.

        Args:
            step: Number of finished steps.
            batches: Where the crops come from; as many are taken as there are backward passes.
            throughput: What measures where the time goes.

        Returns:
            What the step leaves to look at.

        Raises:
            NonFiniteError: A loss or gradient is NaN or infinite; weights and teacher are as before the step.
        """
        state, accumulate = self.state, self.config.parallel.accumulate
        schedules = Schedules.at(step, self.config)
        apply_schedules(
            state.optimizer,
            lr=schedules.learning_rate,
            weight_decay=schedules.weight_decay,
            last_layer_lr=schedules.last_layer_learning_rate,
        )
        state.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        used: list[CropBatch] = []
        for number in range(accumulate):
            with throughput.measure("data"):
                batch = next(batches)
            used.append(batch)
            with throughput.measure("compute"):
                losses = self._backward(step, number, batch, schedules.teacher_temperature)
                for name, value in losses.parts.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() / accumulate
        with throughput.measure("compute"):
            state.loss_scale.unscale(state.student.parameters())
            norms = as_numbers(clip_gradients(state.student, self.config.optimizer.clip_norm))
        # a gradient is not finite if any process's loss is not, and its norm is the same for all of them
        finite = all(value < float("inf") for value in norms.values())
        skipped = state.loss_scale.update(overflow=not finite)
        if not finite and not skipped:
            values = {**as_numbers(sums), **{f"gradient norm of {name}": x for name, x in norms.items()}}
            named = ", ".join(
                f"{name} = {value}" for name, value in values.items() if not value < float("inf")
            )
            raise NonFiniteError(f"step {step}: {named}", used)
        if not skipped:
            with throughput.measure("compute"):
                state.optimizer.step()
                update_teacher(state.student, state.teacher, schedules.teacher_momentum)
        return StepResult(
            losses=sums,
            norms=norms,
            schedules=schedules,
            last=losses,
            skipped=skipped,
            loss_scale=state.loss_scale.factor,
        )

    def _backward(self, step: int, number: int, batch: CropBatch, teacher_temperature: float) -> Losses:
        config, device = self.config, self.world.device
        passed = step * config.parallel.accumulate + number
        mask = masks_of_step(
            self.grid,
            positions=self._positions(number, len(batch)),
            num_images=config.batch_size,
            share=config.mask.share,
            ratio=config.mask.ratio,
            seed=config.seed,
            step=step,
        )
        torch.manual_seed(
            ((config.seed + 1) * _STEP_SEED_FACTOR + passed) * self.world.size + self.world.rank
        )
        global_crops, local_crops = self.augment(batch.to(device))
        precision = config.parallel.precision
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            losses = compute_losses(
                self.state.student,
                self.state.teacher,
                self.state.criterion,
                global_crops,
                local_crops,
                mask,
                teacher_temperature,
            )
        (losses.total * (self.state.loss_scale.factor / config.parallel.accumulate)).backward()
        return losses

    def _positions(self, number: int, num_images: int) -> range:
        """Says which images of the whole step this process's backward pass holds."""
        first = (number * self.world.size + self.world.rank) * num_images
        return range(first, first + num_images)
