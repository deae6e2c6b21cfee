"""Configuration → what is trained, what the workers are told, and what the run's record says."""

from __future__ import annotations

from typing import Any

import torch

from ..data.samples import Samples
from ..ssl.crops import CropOptions
from ..ssl.losses import DINOv2Loss
from ..ssl.student_teacher import build_pair
from ..training.checkpoint import TrainState
from ..training.config_file import config_to_dict
from ..training.loss_scale import LossScale
from ..training.optimizer import make_adamw, parameter_groups
from ..training.parallelize import parallelize
from ..training.world import World
from .config import PretrainConfig


def build_state(
    config: PretrainConfig, world: World
) -> tuple[TrainState, tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """Builds what is trained, laid out over the processes.

    Args:
        config: The run.
        world: The processes.

    Returns:
        The state; rows and columns of patches of a global crop; mean and deviation of the images.
    """
    torch.manual_seed(config.seed)
    student, teacher = build_pair(
        config.model.name,
        model_arguments={"img_size": config.crops.global_size_px, **config.model.arguments},
        drop_path_rate=config.model.drop_path_rate,
        pretrained=config.model.pretrained,
        checkpoint=config.model.weights,
        num_prototypes=config.head.num_prototypes,
        hidden_dim=config.head.hidden_dim,
        bottleneck_dim=config.head.bottleneck_dim,
        num_layers=config.head.num_layers,
        separate_ibot_head=config.head.separate_ibot_head,
        learn_gain=config.head.learn_gain,
    )
    backbone = student.backbone
    size = config.crops.global_size_px
    rows, columns = backbone.patch_embed.dynamic_feat_size((size, size))
    mean, std = (tuple(backbone.pretrained_cfg[name]) for name in ("mean", "std"))
    for network, recompute in ((student, True), (teacher, False)):
        network.to(world.device)
        parallelize(network, world.mesh, config.parallel, recompute=recompute)
    loss = config.loss
    criterion = DINOv2Loss(
        config.head.num_prototypes,
        loss.centering,
        student_temp=loss.student_temperature,
        center_momentum=loss.center_momentum,
        sinkhorn_iterations=loss.sinkhorn_iterations,
        dino_weight=loss.dino_weight,
        ibot_weight=loss.ibot_weight,
        regularizer=loss.regularizer,
        regularizer_weight=loss.regularizer_weight,
        regularizer_scope=loss.regularizer_scope,
        kde_concentration=loss.kde_concentration,
        ibot_chunk_rows=config.head.ibot_chunk_rows,
    ).to(world.device)
    groups = parameter_groups(
        student,
        patch_embed_lr_multiplier=config.optimizer.patch_embed_multiplier,
        layer_decay=config.optimizer.layer_decay,
        decay_ssm=config.optimizer.decay_ssm,
    )
    state = TrainState(
        student=student,
        teacher=teacher,
        optimizer=make_adamw(groups, betas=config.optimizer.betas),
        criterion=criterion,
        loss_scale=LossScale(enabled=config.parallel.precision == "fp16"),
    )
    return state, (rows, columns), mean, std


def crop_options(config: PretrainConfig) -> CropOptions:
    """Picks what the workers need to know.

    Args:
        config: The run.
    """
    crops = config.crops
    return CropOptions(
        global_size_px=crops.global_size_px,
        local_size_px=crops.local_size_px,
        num_local=crops.num_local,
        global_scale=crops.global_scale,
        local_scale=crops.local_scale,
        horizontal_flip=crops.horizontal_flip,
        vertical_flip=crops.vertical_flip,
        rotation=crops.rotation,
    )


def describe_run(config: PretrainConfig, samples: Samples) -> dict[str, Any]:
    """Lays out what ``config.json`` holds: the configuration, and what it amounts to on these data.

    Args:
        config: The run.
        samples: Its patches.
    """
    return {
        **config_to_dict(config),
        "resolved": {
            "num_samples": len(samples),
            "data_fingerprint": samples.fingerprint(),
            "peak_learning_rate": config.peak_learning_rate,
            "num_epochs": config.num_steps * config.batch_size / len(samples),
        },
    }
