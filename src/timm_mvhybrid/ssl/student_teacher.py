"""Student and teacher: two networks of one backbone and the heads, the teacher a moving average of the student."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .backbone import PatchMasking, create_backbone
from .heads import ProjectionHead
from .masking import MaskedPatches
from .prototype_loss import PatchTargets


class NetworkOutput(NamedTuple):
    """What a network makes of the crops of a batch; FSDP looks into tuples for what needs a gradient.

    Attributes:
        class_features: Class tokens of the global crops, after the final norm, (2B, D).
        class_scores: The class head's scores of all crops, the global ones first, (2B + L·B, K).
        patch_scores: The patch head's scores of the masked patches, (M, K), if asked for whole.
        patch_factors: Their factors, (M, d) and (K, d), if asked for.
        patch_loss: The masked patches' loss, a scalar, where targets were given.
    """

    class_features: Tensor
    class_scores: Tensor
    patch_scores: Tensor | None = None
    patch_factors: tuple[Tensor, Tensor] | None = None
    patch_loss: Tensor | None = None


class Network(nn.Module):
    """A backbone, a head for class tokens and a head for masked patches.

    Everything happens in ``forward``: where FSDP shards a network, its weights are whole nowhere else.

    Args:
        backbone: Of :func:`~timm_mvhybrid.ssl.backbone.create_backbone`, with a mask token.
        dino_head: For class tokens.
        ibot_head: For patch tokens; None to use the other head for them too.
    """

    def __init__(
        self, backbone: nn.Module, dino_head: ProjectionHead, ibot_head: ProjectionHead | None = None
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head
        self._masking = PatchMasking(backbone)

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor | None = None,
        *,
        masked: MaskedPatches | None = None,
        hide: bool = False,
        factored: bool = False,
        targets: PatchTargets | None = None,
    ) -> NetworkOutput:
        """Computes scores of class tokens and of masked patches.

        Args:
            global_crops: (2B, 3, G, G), normalised, crop by crop.
            local_crops: (L·B, 3, l, l), likewise; None or no rows for none.
            masked: Patches of the global crops to score; None for none.
            hide: Whether the backbone sees the mask token in their place, as the student does.
            factored: Whether to return their scores as two factors.
            targets: The teacher's targets for them; then their loss is computed instead.
        """
        hidden = masked.mask if masked is not None and hide else None
        tokens = self._masking.forward_features(global_crops, hidden)
        # FSDP warns of outputs that are views
        class_features = tokens[:, 0].clone()
        class_tokens = class_features
        if local_crops is not None and len(local_crops):
            local_tokens = self._masking.forward_features(local_crops, None)
            class_tokens = torch.cat([class_features, local_tokens[:, 0]])
        class_scores = self.dino_head(class_tokens)
        if masked is None:
            return NetworkOutput(class_features, class_scores)
        patches = masked.select(tokens[:, self.backbone.num_prefix_tokens :])
        head = self.dino_head if self.ibot_head is None else self.ibot_head
        found = head(patches, factored=factored, targets=targets)
        name = "patch_loss" if targets is not None else "patch_factors" if factored else "patch_scores"
        return NetworkOutput(class_features, class_scores)._replace(**{name: found})


def build_pair(
    model: str,
    *,
    model_arguments: dict[str, Any] | None = None,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_prototypes: int = 65_536,
    hidden_dim: int = 2048,
    bottleneck_dim: int = 256,
    num_layers: int = 3,
    separate_ibot_head: bool = True,
    learn_gain: bool = False,
) -> tuple[Network, Network]:
    """Builds a student and a teacher that equals it.

    Args:
        model: Any timm VisionTransformer with a class token.
        model_arguments: Further arguments of ``timm.create_model``.
        drop_path_rate: Stochastic depth of the student; the teacher has none.
        pretrained: Whether the backbone starts from the weights that timm downloads.
        checkpoint: File that the backbone starts from, of any format that
            :func:`~timm_mvhybrid.models.load_weights` reads; None for none.
        num_prototypes: Prototypes of each head.
        hidden_dim: Width of the heads' hidden layers.
        bottleneck_dim: Width in front of the prototypes.
        num_layers: Layers in front of the prototypes.
        separate_ibot_head: Whether patch tokens have a head of their own.
        learn_gain: Whether the prototypes' lengths are learned, as in DINOv2's code.

    Returns:
        (student, teacher), on the CPU in float32. The student is in training mode; the teacher is in evaluation mode
        and needs no gradients.

    Raises:
        PretrainError: The model cannot be trained this way; the message says why.
        CheckpointError: The weights do not fit.
    """

    def build(**options: Any) -> Network:
        backbone = create_backbone(model, model_arguments or {}, **options)
        heads = [
            ProjectionHead(
                backbone.embed_dim,
                num_prototypes,
                hidden_dim=hidden_dim,
                bottleneck_dim=bottleneck_dim,
                num_layers=num_layers,
                learn_gain=learn_gain,
            )
            for _ in range(2 if separate_ibot_head else 1)
        ]
        return Network(backbone, *heads)

    student = build(drop_path_rate=drop_path_rate, pretrained=pretrained, checkpoint=checkpoint)
    teacher = build()
    teacher.load_state_dict(student.state_dict(), strict=True)
    return student.train(), teacher.eval().requires_grad_(False)


@torch.no_grad()
def update_teacher(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """Moves the teacher towards the student: teacher ← m · teacher + (1 − m) · student; buffers are copied.

    Both may be sharded, alike. The student may have more in it than the teacher, whose names it must have.
    """
    pairs: dict[tuple[torch.dtype, torch.device, type], tuple[list[Tensor], list[Tensor]]]
    pairs = defaultdict(lambda: ([], []))
    learned = dict(student.named_parameters())
    for name, old in teacher.named_parameters():
        new = learned[name]
        olds, news = pairs[old.dtype, old.device, type(old.data)]
        olds.append(old)
        news.append(new)
    for olds, news in pairs.values():
        torch._foreach_lerp_(olds, news, 1.0 - momentum)
    buffers = dict(student.named_buffers())
    for name, held in teacher.named_buffers():
        held.copy_(buffers[name])
