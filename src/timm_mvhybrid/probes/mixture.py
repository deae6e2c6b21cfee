"""A bag of patch embeddings → one vector: a Gaussian mixture around prototypes shared by all slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from ..runtime.extras import require
from .arrays import check_width, finite_matrix


def mixture_prototypes(
    bags: Sequence[ArrayLike], num_prototypes: int = 16, *, max_patches: int = 100_000, seed: int = 0
) -> NDArray[np.float32]:
    """Finds prototypes by k-means over the patches of the training slides.

    Args:
        bags: Embeddings of each slide, (patches, D).
        num_prototypes: Clusters.
        max_patches: Patches drawn from all bags together, where there are more.
        seed: Seed of drawing and clustering.

    Returns:
        Cluster centres, (num_prototypes, D) float32.

    Raises:
        EvaluationError: If there are fewer patches than prototypes, or scikit-learn is not installed.
    """
    patches = np.concatenate(
        [finite_matrix(f"bags[{index}]", bag, np.float32) for index, bag in enumerate(bags)]
    )
    if not 1 <= num_prototypes <= len(patches):
        raise EvaluationError(f"{num_prototypes} prototypes of {len(patches)} patches: take fewer prototypes")
    if len(patches) > max_patches:
        kept = np.random.default_rng(seed).choice(len(patches), max_patches, replace=False)
        patches = patches[np.sort(kept)]
    kmeans = require("sklearn.cluster").KMeans(num_prototypes, n_init=3, random_state=seed)
    centres: NDArray[np.float32] = kmeans.fit(patches).cluster_centers_.astype(np.float32)
    return centres


def slide_mixture_embedding(
    bag: ArrayLike, prototypes: ArrayLike, *, num_iters: int = 1, tau: float = 1.0, eps: float = 1.0
) -> NDArray[np.float64]:
    """Fits a Gaussian mixture with diagonal covariances to a slide and concatenates its parameters.

    Maximum a posteriori expectation maximisation from equal weights, the prototypes as means and eps as variances;
    the prior counts as tau patches at each prototype, with variance eps.

    Source: PANTHER (Song et al., CVPR 2024, section 3.2), after Kim, Differentiable Expectation-Maximization for Set
    Representation Learning, ICLR 2022.

    Args:
        bag: Patch embeddings, (patches, D), or several slides of as many patches, (slides, patches, D).
        prototypes: (P, D), the same for all slides.
        num_iters: Steps of expectation maximisation.
        tau: Weight of the prior, above 0.
        eps: Variance of the prior, above 0.

    Returns:
        Weights (P), means (P · D) and variances (P · D) side by side, (P + 2 P D,), or one row for each slide; float64.

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, or tau, eps or num_iters are not above 0.
    """
    if np.ndim(bag) == 3:
        return np.stack(
            [
                slide_mixture_embedding(single, prototypes, num_iters=num_iters, tau=tau, eps=eps)
                for single in np.asarray(bag)
            ]
        )
    x, centres = finite_matrix("bag", bag, np.float64), finite_matrix("prototypes", prototypes, np.float64)
    check_width(bag=x, prototypes=centres)
    if not (tau > 0 and eps > 0 and num_iters > 0):
        raise EvaluationError(f"`tau`, `eps` and `num_iters` must be above 0, not {tau}, {eps}, {num_iters}")
    weights, means, variances = np.full(len(centres), 1 / len(centres)), centres, np.full_like(centres, eps)
    squares = np.square(x)
    for _ in range(num_iters):
        precision = 1 / variances
        # log density up to the constant that all components share
        log_density = -0.5 * (
            squares @ precision.T
            - 2 * x @ (means * precision).T
            + (np.square(means) * precision + np.log(variances)).sum(axis=1)
        )
        log_joint = log_density + np.log(weights)
        log_joint -= log_joint.max(axis=1, keepdims=True)
        responsibility = np.exp(log_joint)
        responsibility /= responsibility.sum(axis=1, keepdims=True)
        counts = responsibility.sum(axis=0) + tau
        weights = counts / counts.sum()
        means = (responsibility.T @ x + tau * centres) / counts[:, None]
        second = (responsibility.T @ squares + tau * (eps + np.square(centres))) / counts[:, None]
        # a difference of squares: rounding must not make it negative
        variances = np.maximum(second - np.square(means), np.finfo(np.float64).eps * second)
    return np.concatenate([weights, means.ravel(), variances.ravel()])
