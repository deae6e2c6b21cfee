"""The DINOv2 recipe: patches of any source, class tokens and masked patches, and an online probe of the teacher."""

from __future__ import annotations

from ..data.manifest import open_samples
from ..ssl.distillation import SelfDistillation
from ..training.measuring import sharded_type
from ..training.objective import Evaluation
from ..training.world import World
from .config import PretrainConfig
from .online_probe import OnlineProbe


class DINOv2Objective(SelfDistillation):
    """Self-distillation of class tokens and masked patches, with an online probe of the teacher.

    Source: DINOv2 (arXiv 2304.07193); see :class:`~timm_mvhybrid.ssl.losses.DINOv2Loss`.

    Args:
        config: The run.
        world: Its processes, over which student and teacher are laid out.

    Raises:
        PretrainError: The model cannot be trained this way, or the labelled set of the probe cannot be used.
        DataError: The patches cannot be opened.
    """

    name = "pretraining"
    config: PretrainConfig

    def __init__(self, config: PretrainConfig, world: World) -> None:
        data = config.data
        super().__init__(
            config,
            world,
            open_samples(data.sources, slides=data.slides, edge=data.edge),
            mask=config.mask,
            num_workers=data.num_workers,
            max_corrupt=data.max_corrupt,
            by_kind=config.monitor.by_kind,
        )
        monitor = config.monitor
        self._probe = None
        if monitor.probe is not None:
            self._probe = OnlineProbe(
                monitor.probe,
                image_size_px=config.crops.global_size_px,
                mean=self.mean,
                std=self.std,
                batch_size=monitor.probe_batch_size,
                device=world.device,
                counts_layer=monitor.probe_counts_layer,
            )

    def evaluate(self, step: int) -> Evaluation | None:
        """Probes the teacher on the labelled set, if there is one."""
        every = self.config.monitor.probe_every_steps
        if self._probe is None or (step % every and step != self.config.num_steps):
            return None
        with sharded_type(self.world, self.config.parallel):
            scores = self._probe(self.teacher, self.class_features)
        return Evaluation(
            scores=scores,
            dataset=str(self.config.monitor.probe),
            protocol=self._probe.protocol,
        )
