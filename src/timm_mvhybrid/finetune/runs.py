"""Runs of MINT and STAMP: settings → cohorts, objective, what is measured of it, and the loop of ``training``."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..runtime.digest import file_sha256
from ..training.loop import Resume, RunResult, run_training
from ..training.measuring import sharded_type
from ..training.objective import Evaluation, Objective
from ..training.world import World
from .config import MintSettings, StampSettings, check_stamp
from .data import FinetuneData, open_cohorts
from .evaluation import MolecularProbe
from .method_config import MintConfig, StampConfig
from .mint import MintObjective
from .stamp import StampObjective


class _Measured(Objective):
    """When an objective on cohorts is measured, and by what; a subclass says how."""

    config: Any
    data: Any
    world: World
    mean: Any
    std: Any

    def _start_measuring(self, options: MintConfig | StampConfig) -> None:
        self._every_steps = options.validate_every_steps
        self._probe = None
        if self.data.num_validation_patches:
            self._probe = MolecularProbe(
                self.data,
                self.config.probe,
                image_size_px=self.config.crops.global_size_px,
                mean=self.mean,
                std=self.std,
                batch_size=options.validation_batch_size,
                device=self.world.device,
            )

    def baseline(self) -> Evaluation | None:
        """Measures the encoder as it is at the start, and remembers what the frozen one makes of all patches."""
        return self._measure()

    def evaluate(self, step: int) -> Evaluation | None:
        """Measures where it is due: every so many steps, and at the end."""
        return self._measure() if step % self._every_steps == 0 or step == self.config.num_steps else None

    def _measure(self) -> Evaluation | None:
        if self._probe is None:
            return None
        with sharded_type(self.world, self.config.parallel):
            if not self._probe.is_frozen:
                self._freeze(self._probe)
            scores = self._probe(self.trained, self._what_is_measured)
        return self._probe.evaluation(scores, self._judged_by)

    _judged_by: tuple[str, ...]
    """Names of scores, of which the first one that is there judges checkpoints."""

    @abstractmethod
    def _freeze(self, probe: MolecularProbe) -> None:
        """Shows the frozen encoder to the probe."""

    @abstractmethod
    def _what_is_measured(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embeds a batch; see ``evaluation.Features``."""


class MintRun(_Measured, MintObjective):
    """MINT's objective on cohorts, measured on held-out patches.

    Args:
        config: The run.
        world: Its processes.

    Raises:
        DataError: The cohorts cannot be used.
        PretrainError: The model cannot be trained this way.
        FinetuneError: Its backbone cannot carry an ST token, or tokens do not fit the cells of a panel.
    """

    config: MintSettings
    data: FinetuneData
    _judged_by = ("expression_class_st", "class_cosine")

    def __init__(self, config: MintSettings, world: World) -> None:
        super().__init__(config, world, open_cohorts(config.data, seed=config.seed))
        self._start_measuring(config.mint)

    def resolved(self) -> Mapping[str, Any]:
        """Names panels and what is held out."""
        return {"method": "mint", **_base(self.config, self.student.backbone), **describe(self.data)}

    def _freeze(self, probe: MolecularProbe) -> None:
        probe.freeze(self.frozen, self._what_was_there)

    def _what_was_there(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _tokens(self.frozen, images)

    def _what_is_measured(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # a forward of all, because a sharded network is whole nowhere else; one crop is the least it takes
        output: Any = self.student(images[:1], image=images)
        found = {"class": output.class_token, "st": output.st, "patch": output.patch_tokens}
        return found | {f"head/{name}": value for name, value in output.spots.items()}


class StampRun(_Measured, StampObjective):
    """STAMP's objective on cohorts, measured on held-out patches.

    Args:
        config: The run.
        world: Its processes.

    Raises:
        DataError: The cohorts or gene sets cannot be used.
        PretrainError: The model cannot be trained this way.
        FinetuneError: The adapters cannot be where they shall.
    """

    config: StampSettings
    data: FinetuneData
    _judged_by = ("pathway_pearson", "class_cosine")

    def __init__(self, config: StampSettings, world: World) -> None:
        check_stamp(config)
        super().__init__(config, world, open_cohorts(config.data, seed=config.seed))
        self._start_measuring(config.stamp)

    def resolved(self) -> Mapping[str, Any]:
        """Names panels, pathways and what is held out."""
        return {"method": "stamp", **_base(self.config, self.network.backbone), **describe(self.data)}

    def _freeze(self, probe: MolecularProbe) -> None:
        with self._adapted.disable_adapter():
            probe.freeze(self.network, self._what_is_measured)

    def _what_is_measured(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        output: Any = self.network(images, targets["pathways"])
        found = {"class": output.class_token, "patch": output.patch_tokens}
        return {**found, "image": output.image, "pathway": output.pathway, "scores": output.scores}


def run_mint(
    config: MintSettings, *, resume: Resume = "auto", allow_changes: bool = False, show_progress: bool = True
) -> RunResult:
    """Fine-tunes an encoder by MINT, or goes on where a run stopped; every process of torchrun calls it.

    Args:
        config: The run.
        resume: As for :func:`~timm_mvhybrid.training.loop.run_training`.
        allow_changes: Likewise.
        show_progress: Likewise.

    Returns:
        How it ended. A finished run leaves ``encoder.safetensors``, the backbone with class and patch features exactly
        as trained; ``st_model.safetensors``, ST token and heads; ``teacher.safetensors``, its moving average.

    Raises:
        PretrainError: The run cannot start or go on; the message names the cause and the remedy.
        DataError: The cohorts cannot be used.
    """
    return _run(config, MintRun, resume, allow_changes, show_progress)


def run_stamp(
    config: StampSettings, *, resume: Resume = "auto", allow_changes: bool = False, show_progress: bool = True
) -> RunResult:
    """Fine-tunes an encoder by STAMP, or goes on where a run stopped; every process of torchrun calls it.

    Args:
        config: The run.
        resume: As for :func:`~timm_mvhybrid.training.loop.run_training`.
        allow_changes: Likewise.
        show_progress: Likewise.

    Returns:
        How it ended. A finished run leaves ``encoder.safetensors``, the backbone with the adapters merged in float32, and
        ``adapters/``, which belong to the base that they name.

    Raises:
        PretrainError: The run cannot start or go on; the message names the cause and the remedy.
        DataError: The cohorts or gene sets cannot be used.
    """
    check_stamp(config)
    return _run(config, StampRun, resume, allow_changes, show_progress)


def describe(data: FinetuneData) -> dict[str, Any]:
    """Says what cohorts amount to: panels, gene sets, and what is held out.

    Args:
        data: The cohorts.

    Returns:
        Of JSON's types.
    """
    found: dict[str, Any] = {
        "panels": {
            name: {
                "platform": panel.platform,
                "num_genes": len(panel.genes),
                "genes_sha256": _digest(panel.genes),
                "num_measured_genes": panel.num_measured_genes,
                "unit": panel.unit,
                "cells_along_a_side": panel.grid,
                "num_training_patches": panel.num_training_patches,
            }
            for name, panel in data.panels.items()
        },
        # names of patients are nobody's business where weights are published
        "held_out": {
            "by": data.split.by,
            "num_groups": len(data.split.groups),
            "studies": list(data.split.groups) if data.split.by == "study" else [],
        },
        "num_validation_patches": data.num_validation_patches,
    }
    if data.pathways is not None:
        pathways = data.pathways
        found["pathways"] = {
            "num_sets": len(pathways.names),
            "names_sha256": _digest(pathways.names),
            "method": pathways.method,
            "panels_without_scores": sorted(pathways.unscored),
        }
    return found


def _base(config: MintSettings | StampSettings, backbone: Any) -> dict[str, Any]:
    """Identifies what is fine-tuned."""
    file = config.model.weights
    return {
        "embed_dim": int(backbone.embed_dim),
        "base_sha256": None if file is None else file_sha256(file),
    }


def _run(
    config: Any,
    objective: Callable[[Any, World], Any],
    resume: Resume,
    allow_changes: bool,
    show_progress: bool,
) -> RunResult:
    return run_training(
        config,
        lambda world: objective(config, world),
        resume=resume,
        allow_changes=allow_changes,
        show_progress=show_progress,
    )


def _tokens(backbone: Any, images: Tensor) -> dict[str, Tensor]:
    tokens: Tensor = backbone.forward_features(images)
    return {"class": tokens[:, 0], "patch": tokens[:, backbone.num_prefix_tokens :]}


def _digest(names: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
