"""A model and gratings → how strongly its features follow each of them, at real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..ops.forward_mode import ForwardModeError, derivatives
from ..runtime.errors import ParameterError

Orientation = Literal["rows", "columns", "diagonal"]
"""Along which a grating varies: along the rows, as the scan reads; along the columns; or along both."""

WORK_ELEMENTS = 1 << 25
"""Size of a pass of a vision transformer, 16 for each token, channel and grating: 21 gratings of 257 tokens of 384 channels,
whose widest tensor, of an MLP, has 33 MB in float32. The more gratings share the image's forward pass, the better."""

COMPOSED_ELEMENTS = 1 << 23
"""The same for any other model, whose derivatives torch composes of light operations that should stay in the cache."""


def grating(
    frequency: float, orientation: Orientation, size: tuple[int, int], *, num_channels: int = 3
) -> Tensor:
    """Draws a cosine grating, of amplitude 1 in every channel.

    Args:
        frequency: Cycles over the image's height or width, whichever it varies along; for ``diagonal`` cycles over a way of
            that length along the diagonal.
        orientation: ``rows`` varies from left to right, along the rows; ``columns`` from top to bottom; ``diagonal`` both.
        size: Height and width in px.
        num_channels: Channels of the image.

    Returns:
        (num_channels, height, width), float32.

    Raises:
        ParameterError: There is no such orientation.
    """
    if orientation not in get_args(Orientation):
        raise ParameterError(
            f"`orientation` is {orientation!r}; allowed are {', '.join(get_args(Orientation))}"
        )
    height, width = size
    y = torch.arange(height, dtype=torch.float64)[:, None] / height
    x = torch.arange(width, dtype=torch.float64)[None] / width
    along = {"rows": x + 0 * y, "columns": y + 0 * x, "diagonal": (x + y) / math.sqrt(2.0)}[orientation]
    return torch.cos(2 * math.pi * frequency * along).float().expand(num_channels, -1, -1).contiguous()


def forward_mode_attention() -> AbstractContextManager[Any]:
    """Chooses attention in plain operations: the fused kernels have no derivative in forward mode."""
    return sdpa_kernel(SDPBackend.MATH)


def jacobian_gain(model: nn.Module, images: Tensor, gratings: Tensor) -> NDArray[np.float64]:
    """Measures ‖J v‖ / ‖v‖, J the Jacobian of the model's features at an image and v a grating.

    The derivative is exact, in forward mode, and all gratings of a pass share the image's forward pass: vision transformers
    of this package and of timm go by :mod:`~timm_mvhybrid.ops.forward_mode`, any other model, and one whose layers change
    tensors in place, by ``torch.func.jvp``, with the same numbers in more time. A grating of finite amplitude would measure
    the model's curvature, too: of 0.1 it is off by a tenth, of 1 by a half.

    Up to half a cycle a patch (8 cycles over 256 px with patches of 16 px) this is the response of the tokens; above it is
    that of the patch embedding to texture. Raster scans respond to rows and columns differently, so that orientations must
    not be averaged.

    Args:
        model: Any model of images whose features are (batch, dim); put into evaluation mode and back.
        images: (images, channels, height, width), normalised.
        gratings: Directions v, (gratings, channels, height, width), in units of the normalised images.

    Returns:
        (images, gratings), float64.

    Raises:
        ParameterError: The gratings do not fit the images, or one of them is 0.
    """
    if images.ndim != 4 or gratings.ndim != 4 or images.shape[1:] != gratings.shape[1:]:
        raise ParameterError(
            f"`gratings` has shape {tuple(gratings.shape)}, `images` {tuple(images.shape)}; both must be (number, channels, "
            "height, width) of the same size"
        )
    parameter = next(model.parameters(), images)
    norms = gratings.double().flatten(1).norm(dim=1)
    if not bool((norms > 0).all()):
        raise ParameterError(f"`gratings` holds a grating of 0, at index {int(norms.argmin())}; leave it out")
    directions = gratings.to(parameter)
    modes = [(module, module.training) for module in model.modules()]
    rows = []
    moves, elements = (
        (derivatives, WORK_ELEMENTS)
        if isinstance(model, VisionTransformer)
        else (_composed, COMPOSED_ELEMENTS)
    )
    try:
        model.eval()
        with forward_mode_attention(), torch.no_grad():
            for image in images.to(parameter).split(1):
                try:
                    found = _lengths(moves, model, image, directions, elements)
                except ForwardModeError:
                    moves, elements = _composed, COMPOSED_ELEMENTS
                    found = _lengths(moves, model, image, directions, elements)
                rows.append(found)
    finally:
        for module, training in modes:
            module.training = training
    return np.asarray((torch.stack(rows).cpu() / norms.cpu()).numpy())


def _lengths(
    moves: Callable[[nn.Module, Tensor, Tensor], Tensor],
    model: Any,
    image: Tensor,
    directions: Tensor,
    elements: int,
) -> Tensor:
    """Computes ‖J v‖ at one image (1, …) for directions (number, …), in passes of as many directions each."""
    embed: Sequence[int] = getattr(getattr(model, "patch_embed", None), "patch_size", (16, 16))
    tokens = math.prod(max(1, side // patch) for side, patch in zip(image.shape[-2:], embed, strict=True))
    most = max(1, elements // (tokens * 16 * int(getattr(model, "embed_dim", 512))))
    passes = max(1, -(-len(directions) // most))
    found = [moves(model, image, part.unsqueeze(1)) for part in directions.tensor_split(passes)]
    return torch.cat([part.double().flatten(1).norm(dim=1) for part in found])


def _composed(model: nn.Module, image: Tensor, directions: Tensor) -> Tensor:
    """Does what :func:`.derivatives` does, for any model, by torch.func."""

    def derivative(direction: Tensor) -> Tensor:
        return jvp(model, (image,), (direction,))[1]

    found: Tensor = vmap(derivative)(directions)
    return found
