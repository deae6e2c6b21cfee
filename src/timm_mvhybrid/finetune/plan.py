"""What a run will do, without running it: configuration → cohorts, what is held out, parameters, rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..training.config import RunConfig
from ..training.objective import Objective
from ..training.world import World, join_world


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do.

    Attributes:
        num_samples: Patches to train on.
        num_epochs: How often each is drawn, of a cohort of weight 1.
        peak_learning_rate: After the warm-up.
        images_per_pass: Patches of a process in a backward pass.
        trained_parameters: Parameters that are trained, heads included.
        all_parameters: All parameters of the network that is trained.
        resolved: Panels, gene sets and what is held out, as ``config.json`` will keep them.
    """

    num_samples: int
    num_epochs: float
    peak_learning_rate: float
    images_per_pass: int
    trained_parameters: int
    all_parameters: int
    resolved: Mapping[str, Any]


def make_plan(config: RunConfig, build: Callable[[Any, World], Objective]) -> Plan:
    """Opens the cohorts and builds the networks; every process calls it.

    Args:
        config: The run.
        build: Makes its objective.

    Returns:
        What follows.

    Raises:
        PretrainError: The configuration does not fit the processes, or the model cannot be trained.
        DataError: The cohorts cannot be used.
    """
    with join_world(config.parallel) as world:
        images = config.images_per_pass(world.world_size)
        objective = build(config, world)
        parameters = list(objective.trained.parameters())
        return Plan(
            num_samples=objective.num_samples,
            num_epochs=config.num_steps * config.batch_size / objective.num_samples,
            peak_learning_rate=config.peak_learning_rate,
            images_per_pass=images,
            trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
            all_parameters=sum(p.numel() for p in parameters),
            resolved=objective.resolved(),
        )


def format_plan(plan: Plan) -> str:
    """Lays a plan out for reading."""
    held_out = plan.resolved["held_out"]
    lines = {
        "patches": f"{plan.num_samples:,}, each seen {plan.num_epochs:.1f} times",
        "validation": f"{plan.resolved['num_validation_patches']:,} patches; held out by {held_out['by']}: "
        f"{held_out['num_groups']}",
        "learning rate": f"{plan.peak_learning_rate:.3g} at its peak",
        "parameters": f"{plan.trained_parameters / 1e6:.2f} M of {plan.all_parameters / 1e6:.2f} M are trained",
    }
    for name, panel in plan.resolved["panels"].items():
        lines[f"panel {name}"] = f"{panel['num_genes']:,} genes, {panel['unit']}"
    if "pathways" in plan.resolved:
        lines["gene sets"] = (
            f"{plan.resolved['pathways']['num_sets']}, scored by {plan.resolved['pathways']['method']}"
        )
    return "\n".join(f"{name:<20} {value}" for name, value in lines.items())
