"""Means and products over spots that a ridge regression can be solved from, and that join over groups of spots."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .lsqr import diagonal_lsqr
from .ridge import MAX_ITERATIONS, TOLERANCE, RidgeSetting

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False, kw_only=True)
class RidgeStatistics:
    """Sufficient statistics of features X and targets Y over some spots.

    Products are of differences from the means, so that they keep their digits wherever the means lie, and a feature that
    is constant over these spots has a product of 0, though it may vary elsewhere.

    Attributes:
        num: Number of spots.
        x: Mean of features, (D,).
        y: Mean of targets, (genes,).
        xx: (X - x)ᵀ(X - x), (D, D).
        xy: (X - x)ᵀ(Y - y), (D, genes).
        yy: Sum of squares of Y - y, (genes,).
    """

    num: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    xx: NDArray[np.float64]
    xy: NDArray[np.float64]
    yy: NDArray[np.float64]

    @staticmethod
    def of(X: NDArray[np.float64], Y: NDArray[np.float64]) -> RidgeStatistics:
        """Computes them of all spots at once."""
        x, y = X.mean(axis=0), Y.mean(axis=0)
        X, Y = X - x, Y - y
        return RidgeStatistics(num=len(X), x=x, y=y, xx=X.T @ X, xy=X.T @ Y, yy=np.square(Y).sum(axis=0))

    @staticmethod
    def total(parts: list[RidgeStatistics]) -> RidgeStatistics:
        """Joins those of parts of the spots: products within parts, and those of the parts' means.

        Source: Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979).
        """
        shares = np.array([part.num for part in parts], dtype=np.float64)
        num = int(shares.sum())
        x, y = (np.stack([getattr(part, name) for part in parts]) for name in ("x", "y"))
        x_mean, y_mean = (shares @ means / num for means in (x, y))
        x, y = ((means - mean) * np.sqrt(shares)[:, None] for means, mean in ((x, x_mean), (y, y_mean)))
        return RidgeStatistics(
            num=num,
            x=x_mean,
            y=y_mean,
            xx=np.sum([part.xx for part in parts], axis=0) + x.T @ x,
            xy=np.sum([part.xy for part in parts], axis=0) + x.T @ y,
            yy=np.sum([part.yy for part in parts], axis=0) + np.square(y).sum(axis=0),
        )

    def select(self, columns: NDArray[np.int64]) -> RidgeStatistics:
        """Keeps some of the targets."""
        return replace(self, y=self.y[columns], xy=self.xy[:, columns], yy=self.yy[columns])

    def squared_error(self, weights: NDArray[np.float64], constants: NDArray[np.float64]) -> float:
        """Sums the squared errors of the prediction X · weights + constants."""
        fitted = np.sum(weights * (self.xx @ weights - 2 * self.xy))
        bias = self.x @ weights + constants - self.y
        return float(fitted + self.yy.sum() + self.num * np.square(bias).sum())


@dataclass(frozen=True, eq=False, kw_only=True)
class RidgeFactors:
    """The training features in their singular basis, which all penalties share.

    Attributes:
        sigma: Singular values of the (scaled and centred, with PCA) features, falling, (k,).
        scale: What each feature is multiplied by, (D,); 1 without PCA, and where a feature is constant.
        trace: Sum of the squares of all singular values, those of components that were dropped included.
        basis: Maps features to the basis V, (D, k): scaled and rotated.
        shift: Subtracted from features first, (D,): their mean with PCA or an intercept, otherwise zero.
        b: Targets in the basis U, (k, genes).
        b_outside: Norm of the targets outside of its span, (genes,).
        y_mean: Added to predictions, (genes,): the targets' means with an intercept, otherwise zero.
    """

    sigma: NDArray[np.float64]
    scale: NDArray[np.float64]
    trace: float
    basis: NDArray[np.float64]
    shift: NDArray[np.float64]
    b: NDArray[np.float64]
    b_outside: NDArray[np.float64]
    y_mean: NDArray[np.float64]

    def coefficients(self, alpha: float, *, early_stopping: bool) -> NDArray[np.float64]:
        """Solves for the coefficients of the basis, (k, genes)."""
        if early_stopping:
            return diagonal_lsqr(
                self.sigma, self.b, self.b_outside, float(np.sqrt(alpha)), TOLERANCE, MAX_ITERATIONS
            )
        squared = np.square(self.sigma) + alpha
        # without a penalty, directions that the features do not span get no weight
        shrink = np.divide(self.sigma, squared, out=np.zeros_like(squared), where=squared > 0)
        return shrink[:, None] * self.b

    def weights(
        self, alpha: float, *, early_stopping: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Solves for weights, (D, genes), and constants, (genes,): prediction = X · weights + constants."""
        weights = self.basis @ self.coefficients(alpha, early_stopping=early_stopping)
        return weights, self.y_mean - self.shift @ weights


def factorise(statistics: RidgeStatistics, setting: RidgeSetting) -> RidgeFactors:
    """Scales, centres and rotates by the statistics of a train part."""
    num, x_mean, y_mean = statistics.num, statistics.x, statistics.y
    centred = setting.num_components is not None or setting.fit_intercept
    gram, cross = statistics.xx, statistics.xy
    if not centred:
        gram = gram + num * np.outer(x_mean, x_mean)
        cross = cross + num * np.outer(x_mean, y_mean)
    scale = np.ones(len(x_mean))
    if setting.num_components is not None:
        variance = np.diag(gram) / num
        # features that vary by rounding only keep their scale, as in scikit-learn
        constant = variance <= num * _EPS * variance + (num * _EPS * x_mean) ** 2
        scale[~constant] = 1 / np.sqrt(variance[~constant])
        gram = gram * np.outer(scale, scale)
    eigenvalues, vectors = np.linalg.eigh(gram)
    trace = float(eigenvalues.clip(0).sum())
    # the largest first
    eigenvalues = eigenvalues[::-1][: setting.num_components]
    vectors = vectors[:, ::-1][:, : setting.num_components]
    spanned = eigenvalues > len(scale) * _EPS * eigenvalues[0]
    sigma = np.sqrt(np.where(spanned, eigenvalues, 0.0))
    basis = scale[:, None] * vectors
    b = np.divide(
        basis.T @ cross, sigma[:, None], out=np.zeros((len(sigma), cross.shape[1])), where=spanned[:, None]
    )
    total = statistics.yy if setting.fit_intercept else statistics.yy + num * np.square(y_mean)
    return RidgeFactors(
        sigma=sigma,
        scale=scale,
        trace=trace,
        basis=basis,
        shift=x_mean if centred else np.zeros_like(x_mean),
        b=b,
        b_outside=np.sqrt((total - np.square(b).sum(axis=0)).clip(0)),
        y_mean=y_mean if setting.fit_intercept else np.zeros_like(y_mean),
    )
