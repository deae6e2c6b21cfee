"""What every backbone of this package does, whatever its blocks: load weights, change its grid, name parameters."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import nn

from ..weights.checkpoint import whole_state
from ..weights.errors import CheckpointError
from ..weights.position_grid import grid_of, resample_position


class BaseVisionTransformer(VisionTransformer):
    """timm's VisionTransformer; weights load whole or not at all, and the position embedding follows the grid."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads weights as torch does, and in any format of ``checkpoint_filter_fn``, all of them or nothing.

        What timm reads for ``checkpoint_path=`` ends here too. That file's sha256, digest and fingerprint, and the grid
        that it states, do not get this far: :func:`~timm_mvhybrid.models.load_weights` verifies them.

        Args:
            state_dict: A state dict, or a training checkpoint that holds one.
            strict: Whether every tensor must be there, fit and be finite, which is proved before the model changes;
                False leaves everything to torch.
            assign: Whether the tensors take the place of the model's own.

        Raises:
            CheckpointError: The weights do not fit, or are not finite; the model is as it was.
        """
        weights = whole_state(state_dict, self) if strict else state_dict
        return super().load_state_dict(weights, strict, assign)

    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Refuses a NumPy file of JAX's ViT, of which timm would load what it finds.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(
            f"{checkpoint_path}: a NumPy file of JAX's ViT cannot hold this model; give a safetensors or PyTorch file"
        )

    def set_input_size(
        self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Changes the nominal (height, width) of images and patches, in px, and resamples a position embedding.

        timm before 1.0.31 leaves it alone where the number of patches stays the same, though their grid does not.
        """
        model: Any = self
        before, old_grid = model.pos_embed, grid_of(self)
        super().set_input_size(img_size, patch_size)
        if before is None:
            return
        if model.pos_embed is before:
            num_prefix = 0 if self.no_embed_class else self.num_prefix_tokens
            model.pos_embed = nn.Parameter(
                resample_position(before.data, list(grid_of(self)), list(old_grid), num_prefix)
            )
        model.pos_embed.requires_grad_(before.requires_grad)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names the parameters that should have no weight decay, beyond biases and other vectors.

        ``A_log``, ``D`` and EinFFT's matrices are not among them: the published models were trained with their decay.
        """
        names = ("pos_embed", "cls_token", "reg_token", "mask_token")
        return {name for name in names if getattr(self, name) is not None}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort the parameters into stem and blocks, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|reg_token|mask_token|pos_embed|patch_embed|norm_pre",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }
