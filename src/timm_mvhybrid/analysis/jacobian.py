"""A model and gratings → how strongly its features follow each of them, at real images."""

from __future__ import annotations

import math
from collections.abc import Sequence
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

WORK_ELEMENTS = 1 << 23
"""Elements of the tangents of one pass, in tokens × channels × gratings × images."""


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

    The derivative is exact, in forward mode (``torch.func.jvp``), and all gratings of a pass share the image's forward pass.
    A grating of finite amplitude would measure the model's curvature, too: of 0.1 it is off by a tenth, of 1 by a half.

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
    try:
        model.eval()
        with forward_mode_attention(), torch.no_grad():
            for image in images.to(parameter).split(1):
                found = [
                    _derivatives(model, image, part) for part in directions.split(_per_pass(model, image))
                ]
                rows.append(torch.cat(found))
    finally:
        for module, training in modes:
            module.training = training
    return np.asarray((torch.stack(rows).cpu() / norms.cpu()).numpy())


def _derivatives(model: nn.Module, image: Tensor, directions: Tensor) -> Tensor:
    """Computes ‖J v‖ at one image (1, …) for directions (number, …)."""
    if isinstance(model, VisionTransformer):
        try:
            found = derivatives(model, image, directions.unsqueeze(1))
            return found.double().flatten(1).norm(dim=1)
        except ForwardModeError:
            pass

    def derivative(direction: Tensor) -> Tensor:
        return jvp(model, (image,), (direction.unsqueeze(0),))[1]

    found = vmap(derivative)(directions)
    return found.double().flatten(1).norm(dim=1)


def _per_pass(model: Any, image: Tensor) -> int:
    """How many gratings are taken at a time, so that their tangents stay in the cache."""
    embed: Sequence[int] = getattr(getattr(model, "patch_embed", None), "patch_size", (16, 16))
    tokens = math.prod(max(1, side // patch) for side, patch in zip(image.shape[-2:], embed, strict=True))
    return max(1, WORK_ELEMENTS // (tokens * 16 * int(getattr(model, "embed_dim", 512))))
