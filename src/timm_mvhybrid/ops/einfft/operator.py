"""EinFFT as a registered operator, ``torch.ops.timm_mvhybrid.einfft``, and its backward."""

import torch
from torch import Tensor

from ..autograd import register
from . import cpu


def _describe(*, x: Tensor, save: bool, **_: object) -> tuple[Tensor, Tensor, Tensor]:
    saved = cpu.saved_shape(x, save)
    return x.new_empty(x.shape), x.new_empty([3, *saved]), x.new_empty([2, *saved], dtype=torch.bool)


register("einfft", cpu.forward, cpu.backward, _describe, save="save")
