"""The gated norm as registered operators, ``torch.ops.timm_mvhybrid.gated_norm`` and ``gated_norm_``."""

import torch
from torch import Tensor

from ...runtime.errors import ParameterError
from ..autograd import register
from ..precision import accumulation_dtype, autocast_disabled
from . import cpu


@torch.library.custom_op("timm_mvhybrid::gated_norm_", mutates_args=("y",))
def _forward_(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> None:
    if not y.is_contiguous():
        raise ParameterError(
            f"timm_mvhybrid::gated_norm_ overwrites y, which must be contiguous; it has strides {y.stride()}"
        )
    with autocast_disabled(y.device.type):
        cpu.forward(y, z, weight, eps, y)


@_forward_.register_fake
def _(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> None:
    return None


def _forward(y: Tensor, z: Tensor, weight: Tensor, eps: float, save: bool) -> tuple[Tensor, Tensor]:
    out = y.new_empty(y.shape)
    scale = cpu.forward(y, z, weight, eps, out)
    return out, scale if save else scale.new_empty(0, 1)


def _describe(*, y: Tensor, save: bool, **_: object) -> tuple[Tensor, Tensor]:
    tokens = y.shape[:-1].numel() if save else 0
    return y.new_empty(y.shape), y.new_empty([tokens, 1], dtype=accumulation_dtype(y.dtype))


register("gated_norm", _forward, cpu.backward, _describe, save="save")
