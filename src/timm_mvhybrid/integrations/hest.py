"""Our backbones in HEST-Benchmark: name → the first three arguments of its ``benchmark``.

::

    from hest.bench.benchmark import benchmark
    from timm_mvhybrid.integrations.hest import encoder

    benchmark(*encoder("mvhybrid_small_patch16_256"), encoders=[], datasets=["IDC"])

HEST is installed from a clone of its repository, github.com/mahmoodlab/HEST: what PyPI calls ``hest`` is another
project. It was run at commit afd42c3, which requires hestcore 1.0.4 and any timm from 0.9.16. Its patches are 224 px at
0.5 µm/px. They enter the model as they are: enlarged to the model's 256 px they would show tissue at another resolution
than the one at which the backbones are trained. Without ``encoders=[]``, HEST runs its
ResNet-50 too. ``timm-mvhybrid evaluate expression`` computes the same task without HEST: ``--panel task --protocols csv
--nan-policy propagate`` are its genes, folds and means. ``dimreduce=None`` in the call has no effect, because HEST
leaves out arguments that are None; principal components are switched off by ``dimreduce: null`` in the file that
``config`` names, and then equal ``--num-components none``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .encoder import Transform, check_precision, load_encoder

__all__ = ["PATCH_SIZE_PX", "encoder"]

PATCH_SIZE_PX = 224
"""Side of the patches of HEST-Benchmark, in px at 0.5 µm/px."""


def encoder(
    model_name: str,
    *,
    pretrained: bool | None = None,
    checkpoint: str | Path | None = None,
    precision: torch.dtype = torch.float32,
    image_size: int = PATCH_SIZE_PX,
    **model_args: Any,
) -> tuple[nn.Module, Transform, torch.dtype]:
    """Builds the first three arguments of ``hest.bench.benchmark.benchmark``.

    Args:
        model_name: A name of ``timm.create_model``.
        pretrained: Take published weights; None means yes, unless a checkpoint is given.
        checkpoint: Take the weights of this file; as ``checkpoint_path`` it is taken too.
        precision: Of autocast on CUDA.
        image_size: Side in px at which patches enter the model.
        **model_args: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: The precision is not a dtype that features can be computed in, or the size does not suit the model.
    """
    check_precision(precision)
    model, transform = load_encoder(
        model_name,
        pretrained=pretrained,
        checkpoint=checkpoint,
        image_size=image_size,
        **model_args,
    )
    return model, transform, precision
