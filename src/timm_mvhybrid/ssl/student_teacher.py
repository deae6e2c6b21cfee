"""Student and teacher: two networks of one backbone and the heads that score prototypes, the teacher a moving average."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.precision import at_least_float32, autocast_disabled
from ..training.settings import require
from .backbone import PatchMasking, create_backbone
from .config import HeadConfig
from .masking import MaskedPatches
from .prototype_loss import PatchTargets, prototype_cross_entropy
from .prototype_scores import product_dtype


class ProjectionHead(nn.Module):
    """A perceptron, L2 normalisation to a bottleneck, and scores for prototypes of length 1.

    Source: DINO (arXiv 2104.14294), appendix C; DINOv2 (arXiv 2304.07193). Linear layers are normal with standard
    deviation 0.02, cut at ±2; biases 0.

    Args:
        in_dim: Width of the tokens.
        num_prototypes: K.
        hidden_dim: Width of the hidden layers.
        bottleneck_dim: Width of the bottleneck, d.
        num_layers: Linear layers in front of the prototypes.
        learn_gain: Whether each prototype's length is learned, from 1. DINOv2's code learns it, DINO's does not.

    Raises:
        PretrainError: A size is below 1.
    """

    def __init__(
        self,
        in_dim: int,
        num_prototypes: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        learn_gain: bool = False,
    ) -> None:
        super().__init__()
        sizes = dict(
            in_dim=in_dim,
            num_prototypes=num_prototypes,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            num_layers=num_layers,
        )
        for name, size in sizes.items():
            require(size >= 1, name, size, "at least 1")
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim))
        self.last_layer_gain = nn.Parameter(torch.empty(num_prototypes, 1)) if learn_gain else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws new initial weights."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        # only directions count, but the shorter a vector, the faster AdamW turns it: DINO's are those of a linear layer
        bound = self.last_layer.shape[1] ** -0.5
        nn.init.uniform_(self.last_layer, -bound, bound)
        if self.last_layer_gain is not None:
            nn.init.ones_(self.last_layer_gain)

    @overload
    def forward(self, x: Tensor, *, targets: PatchTargets | None = None) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, *, factored: bool) -> Tensor | tuple[Tensor, Tensor]: ...

    def forward(
        self, x: Tensor, *, factored: bool = False, targets: PatchTargets | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scores tokens, or does with the scores what need not hold them all.

        It is one method, because FSDP gathers the prototypes for the duration of a forward only.

        Args:
            x: Tokens, (M, in_dim); M may be 0.
            factored: Whether to return the scores' two factors.
            targets: Targets of the tokens, for the loss.

        Returns:
            The scores (M, K); or bottleneck features (M, d) and a copy of the prototypes (K, d), whose product they
            are, in the dtype of the product; or the weighted sum of the tokens' cross-entropies.
        """
        features = self._bottleneck(x)
        prototypes = self._prototypes()
        if targets is not None:
            return prototype_cross_entropy(features, prototypes, targets)
        if factored:
            dtype = product_dtype(features)
            return features.to(dtype), prototypes.to(dtype)
        return F.linear(features, prototypes)

    def _bottleneck(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        with autocast_disabled(x.device.type):
            return F.normalize(at_least_float32(x), dim=-1).to(self.last_layer.dtype)

    def _prototypes(self) -> Tensor:
        with autocast_disabled(self.last_layer.device.type):
            prototypes = F.normalize(at_least_float32(self.last_layer), dim=-1)
            if self.last_layer_gain is not None:
                prototypes = prototypes * self.last_layer_gain
            return prototypes.to(self.last_layer.dtype)


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
    head: HeadConfig,
    *,
    model_arguments: dict[str, Any] | None = None,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
) -> tuple[Network, Network]:
    """Builds a student and a teacher that equals it.

    Args:
        model: Any timm VisionTransformer with a class token.
        head: Sizes of the heads, and whether patch tokens have one of their own.
        model_arguments: Further arguments of ``timm.create_model``.
        drop_path_rate: Stochastic depth of the student; the teacher has none.
        pretrained: Whether the backbone starts from the weights that timm downloads.
        checkpoint: File that the backbone starts from, of any format that
            :func:`~timm_mvhybrid.models.load_weights` reads; None for none.

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
                head.num_prototypes,
                hidden_dim=head.hidden_dim,
                bottleneck_dim=head.bottleneck_dim,
                num_layers=head.num_layers,
                learn_gain=head.learn_gain,
            )
            for _ in range(2 if head.separate_ibot_head else 1)
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
