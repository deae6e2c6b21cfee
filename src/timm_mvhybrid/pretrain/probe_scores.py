"""Features + what is known of their images → how well the one tells the other."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.errors import PretrainError

_QUERIES_PER_CHUNK = 1024
_VOTE_TEMPERATURE = 0.07
_MAX_FOLDS = 10
_NUM_STRIPES = 4
_NUM_COMPONENTS = 256


def knn_predictions(
    features: Tensor, labels: Tensor, reference: Tensor, groups: Tensor | None = None, *, k: int = 20
) -> Tensor:
    """Predicts each image's class from its nearest neighbours.

    Neighbours by cosine similarity s vote with exp(s / 0.07). An image is no neighbour of itself, nor is one of its
    own group.

    Source: DINO, arXiv 2104.14294, appendix; the votes of Wu et al., arXiv 1805.01978.

    Args:
        features: (N, D).
        labels: (N,) int64 from 0.
        reference: (N,) bool, the images that may be neighbours; if all are, each is left out in turn.
        groups: (N,) int64, such as patients; None for none.
        k: Neighbours that vote; fewer where there are fewer.

    Returns:
        (N,) int64; −1 where no image may be a neighbour.
    """
    directions = torch.nn.functional.normalize(features.float(), dim=1)
    candidates = reference.nonzero().squeeze(1)
    num_classes = int(labels.max()) + 1
    predicted = []
    for start in range(0, len(features), _QUERIES_PER_CHUNK):
        queries = torch.arange(start, min(start + _QUERIES_PER_CHUNK, len(features)), device=features.device)
        similarity = directions[queries] @ directions[candidates].T
        excluded = queries[:, None] == candidates[None, :]
        if groups is not None:
            excluded |= groups[queries][:, None] == groups[candidates][None, :]
        similarity = similarity.masked_fill(excluded, -torch.inf)
        nearest, position = similarity.topk(min(k, len(candidates)), dim=1)
        # exp(−∞) is 0: what is excluded has no vote even where fewer than k are left
        votes = torch.zeros(len(queries), num_classes, device=features.device)
        votes.scatter_add_(1, labels[candidates[position]], (nearest / _VOTE_TEMPERATURE).exp())
        best = votes.argmax(dim=1)
        predicted.append(torch.where(excluded.all(dim=1), -1, best))
    return torch.cat(predicted)


def accuracies(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Compares predicted with true classes.

    Args:
        predicted: (N,) int64.
        labels: (N,) int64.

    Returns:
        `accuracy`, the share of right ones, and `balanced_accuracy`, the mean of that share over the classes.
    """
    right = (predicted == labels).double()
    shares = [right[labels == label].mean() for label in labels.unique()]
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(torch.stack(shares).mean())}


def expression_correlation(
    features: NDArray[np.float32],
    expression: NDArray[np.float32],
    groups: NDArray[np.int64],
    coords: NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """Predicts gene expression linearly, and correlates it with the measured one on spots held out.

    Standardised features, 256 principal components, ridge regression with α = 100 / (components · genes). Whole groups
    are held out, at most 10 times; a single group is cut into 4 stripes across its longer side instead, for random
    spots would have neighbours among those fitted.

    Source: the probe of HEST-Bench, arXiv 2406.16192.

    Args:
        features: (N, D).
        expression: (N, G), log scale.
        groups: (N,), such as slides or patients.
        coords: (N, 2) in px, needed for a single group.

    Returns:
        `pearson`, the mean over the folds of the mean over the genes; a gene that is constant, measured or predicted,
        counts as 0.

    Raises:
        PretrainError: scikit-learn is missing, or a single group has no coordinates or too few spots.
    """
    try:
        from sklearn.decomposition import PCA
        from sklearn.linear_model import Ridge
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise PretrainError(
            f"the expression probe needs scikit-learn ({error}): pip install 'timm-mvhybrid[evaluate]'"
        ) from error
    folds = _folds(groups, coords)
    scores: list[float] = []
    for fold in np.unique(folds):
        fitted, held_out = folds != fold, folds == fold
        scaler = StandardScaler().fit(features[fitted])
        known, unknown = scaler.transform(features[fitted]), scaler.transform(features[held_out])
        if not known.any():
            # collapsed features, of which there are no components
            scores.append(0.0)
            continue
        num_components = min(_NUM_COMPONENTS, *known.shape)
        components = PCA(num_components, svd_solver="full").fit(known)
        regression = Ridge(alpha=100 / (num_components * expression.shape[1]))
        # scikit-learn takes the means of its float32 input in float32, over as many spots as there are
        regression.fit(components.transform(known).astype(np.float64), expression[fitted].astype(np.float64))
        predicted = regression.predict(components.transform(unknown)).reshape(int(held_out.sum()), -1)
        scores.append(float(_pearson(predicted, expression[held_out]).mean()))
    return {"pearson": float(np.mean(scores))}


def _folds(groups: NDArray[np.int64], coords: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Numbers the fold in which each spot is held out."""
    names, members = np.unique(groups, return_inverse=True)
    if len(names) > 1:
        return (members % _MAX_FOLDS).astype(np.int64)
    if coords is None:
        raise PretrainError(
            "the expression probe has one group without coordinates, so that no spots can be held out; give a second "
            "sample, or patches with 'coords'"
        )
    axis = int(np.ptp(coords, axis=0).argmax())
    rank = coords[:, axis].argsort(kind="stable").argsort(kind="stable")
    folds = rank * _NUM_STRIPES // len(rank)
    if len(np.unique(folds)) < _NUM_STRIPES:
        raise PretrainError(f"the expression probe has {len(rank)} spots, too few to hold a part of them out")
    return folds.astype(np.int64)


def _pearson(predicted: NDArray[np.floating], measured: NDArray[np.floating]) -> NDArray[np.float64]:
    """Correlates column by column."""
    first = predicted.astype(np.float64) - predicted.mean(axis=0, dtype=np.float64)
    second = measured.astype(np.float64) - measured.mean(axis=0, dtype=np.float64)
    scale = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    product = (first * second).sum(axis=0)
    return np.divide(product, scale, out=np.zeros_like(scale), where=scale > 1e-12)
