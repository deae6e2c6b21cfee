"""Losses between what an encoder says of an image and what was measured there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.precision import at_least_float32, autocast_disabled
from .errors import FinetuneError


def info_nce(image: Tensor, pathway: Tensor, temperature: float | Tensor = 0.05) -> Tensor:
    """Computes the symmetric InfoNCE loss of pairs, the mean of both directions.

    With s_ij the cosine of image i and pathways j, divided by the temperature, it is −½ mean_i (log softmax_j s_ii +
    log softmax_i s_ii). A model that cannot tell the pairs apart has ln(batch).
    Source: van den Oord et al. (arXiv 1807.03748); symmetric as in CLIP (arXiv 2103.00020).

    Args:
        image: Embeddings of the images, (batch, dim); rows are normalised here.
        pathway: Embeddings of what was measured there, (batch, dim), row by row.
        temperature: Above 0.

    Returns:
        A scalar in float32, or in float64 for float64 input, autocast or not.

    Raises:
        FinetuneError: The shapes do not fit, or the temperature is not above 0.

    Examples:
        >>> import torch
        >>> round(info_nce(torch.eye(4), torch.ones(4, 4)).item(), 4)  # ln 4
        1.3863
    """
    if image.ndim != 2 or image.shape != pathway.shape or not len(image):
        raise FinetuneError(
            f"`image` has shape {tuple(image.shape)} and `pathway` {tuple(pathway.shape)}; both must be (batch, dim)"
        )
    # of a tensor it would be a synchronisation with a GPU
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise FinetuneError(f"`temperature` is {temperature}; it must be above 0")
    with autocast_disabled(image.device.type):
        rows, columns = (F.normalize(at_least_float32(x), dim=-1) for x in (image, pathway))
        scores = rows @ columns.T / temperature
        pairs = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2


def masked_mse(prediction: Tensor, target: Tensor, measured: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Computes the mean squared error of standardised targets over what was measured.

    Σ m (p − (y − μ) / σ)² / Σ m, and 0, with gradients of 0, where nothing was measured. Of several processes add up
    both sums, which :func:`masked_squares` returns, before dividing.

    Args:
        prediction: p, (..., genes), of standardised values.
        target: y, (..., genes); what it holds where nothing was measured does not matter, NaN included.
        measured: m, bool, (..., genes).
        mean: μ of each gene, (genes,), of training samples.
        std: σ of each gene, (genes,); 0 for a constant gene, whose standardised value is 0.

    Returns:
        A scalar in float32, or in float64 for float64 input, autocast or not.

    Raises:
        FinetuneError: A shape or dtype does not fit.
    """
    squares, number = masked_squares(prediction, target, measured, mean, std)
    return squares / number.clamp(min=1)


def masked_squares(
    prediction: Tensor, target: Tensor, measured: Tensor, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes the two sums of :func:`masked_mse`, which may be added up over parts of a batch.

    Args:
        prediction: As for ``masked_mse``.
        target: Likewise.
        measured: Likewise.
        mean: Likewise.
        std: Likewise.

    Returns:
        Σ m (p − (y − μ) / σ)² and Σ m, scalars of one dtype.

    Raises:
        FinetuneError: A shape or dtype does not fit.
    """
    _check(prediction, target, measured, mean, std)
    with autocast_disabled(prediction.device.type):
        p = at_least_float32(prediction)
        # what was not measured is replaced before it is computed with: 0 · NaN is NaN, in gradients too
        y = torch.where(measured, target.to(p.dtype), mean.to(p.dtype))
        std = std.to(p.dtype)
        z = (y - mean.to(p.dtype)) / torch.where(std > 0, std, torch.inf)
        difference = torch.where(measured, p - z, 0)
        return difference.square().sum(), measured.sum().to(p.dtype)


def _check(prediction: Tensor, target: Tensor, measured: Tensor, mean: Tensor, std: Tensor) -> None:
    for name, x in (("target", target), ("measured", measured)):
        if x.shape != prediction.shape:
            raise FinetuneError(
                f"`{name}` has shape {tuple(x.shape)}; it must be that of `prediction`, {tuple(prediction.shape)}"
            )
    for name, x in (("mean", mean), ("std", std)):
        if x.shape != prediction.shape[-1:]:
            raise FinetuneError(
                f"`{name}` has shape {tuple(x.shape)}; it must have one value a gene, {tuple(prediction.shape[-1:])}"
            )
    if measured.dtype != torch.bool:
        raise FinetuneError(
            f"`measured` has dtype {measured.dtype}; it must be torch.bool, True where measured"
        )
