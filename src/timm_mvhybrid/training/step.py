"""One optimiser step: batches → losses, gradients, weights, whatever the objective is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..runtime.errors import PretrainError
from .checkpoint import TrainState
from .config import RunConfig
from .optimizer import apply_schedules, clip_gradients
from .parallelize import DTYPES
from .schedules import cosine_schedule
from .throughput import Throughput
from .world import World

# random numbers of a step are drawn anew from the seed, the step and the process, so that resuming needs no state
_STEP_SEED_FACTOR = 1_000_003


class NonFiniteError(PretrainError):
    """Losses or gradients of a step are NaN or infinite.

    Args:
        message: Which, and what to do.
        batches: The batches of the step, as this process saw them.
    """

    def __init__(self, message: str, batches: list[Any]) -> None:
        super().__init__(message)
        self.batches = batches


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What AdamW is told at a step, before the groups' multipliers.

    Attributes:
        learning_rate: Learning rate.
        last_layer_learning_rate: That of last layers; 0 while they are frozen.
        weight_decay: Weight decay.
    """

    learning_rate: float
    last_layer_learning_rate: float
    weight_decay: float

    @classmethod
    def at(cls, step: int, config: RunConfig) -> Rates:
        """Evaluates the schedules of a run."""
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
        )


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves to look at.

    Attributes:
        losses: The objective's losses, averaged over this process's backward passes; scalars on the device.
        norms: Gradient norms before clipping, of the whole gradients.
        rates: What the optimiser was told.
        skipped: Whether the weights were left as they were because float16 overflowed.
        loss_scale: Factor of the loss after the step.
    """

    losses: Mapping[str, Tensor]
    norms: Mapping[str, float]
    rates: Rates
    skipped: bool
    loss_scale: float


class TrainStep:
    """Does one step after the other.

    Args:
        config: The run.
        world: The processes.
        state: What is trained.
    """

    def __init__(self, config: RunConfig, world: World, state: TrainState) -> None:
        self.config = config
        self.world = world
        self.state = state

    def __call__(self, step: int, batches: Iterator[Any], throughput: Throughput) -> StepResult:
        """Does a step; every process calls it.

        Raises:
            NonFiniteError: A loss or gradient is NaN or infinite; the state is as before the step.
        """
        state, accumulate = self.state, self.config.parallel.accumulate
        objective = state.objective
        rates = Rates.at(step, self.config)
        apply_schedules(
            state.optimizer,
            lr=rates.learning_rate,
            weight_decay=rates.weight_decay,
            last_layer_lr=rates.last_layer_learning_rate,
        )
        state.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        used: list[Any] = []
        for number in range(accumulate):
            with throughput.measure("data"):
                batch = next(batches)
            used.append(batch)
            with throughput.measure("compute"):
                losses = self._backward(step, step * accumulate + number, batch)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() / accumulate
        with throughput.measure("compute"):
            state.loss_scale.unscale(objective.trained.parameters())
            objective.after_backward(step)
            norms = as_numbers(clip_gradients(objective.trained, self.config.optimizer.clip_norm))
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
                objective.after_step(step)
        return StepResult(
            losses=sums, norms=norms, rates=rates, skipped=skipped, loss_scale=state.loss_scale.factor
        )

    def _backward(self, step: int, number: int, batch: Any) -> Mapping[str, Tensor]:
        """Computes the losses and gradients of one backward pass, the ``number``-th of the run."""
        config, world, objective = self.config, self.world, self.state.objective
        torch.manual_seed(((config.seed + 1) * _STEP_SEED_FACTOR + number) * world.world_size + world.rank)
        prepared = objective.prepare(batch, step)
        precision = config.parallel.precision
        with torch.autocast(world.device.type, DTYPES[precision], enabled=precision != "fp32"):
            losses = objective.losses(prepared, step)
        (losses["total"] * (self.state.loss_scale.factor / config.parallel.accumulate)).backward()
        return losses


def as_numbers(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Turns scalars into floats, those of one device with one transfer instead of one each."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    numbers: dict[str, float] = {}
    for device in {value.device for value in tensors.values()}:
        names = [name for name, value in tensors.items() if value.device == device]
        stacked = torch.stack([tensors[name].detach().double().reshape(()) for name in names])
        numbers.update(zip(names, stacked.tolist(), strict=True))
    return {name: numbers[name] if name in numbers else float(values[name]) for name in values}
