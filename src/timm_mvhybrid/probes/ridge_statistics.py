"""Sums over spots that a ridge regression can be solved from, and that add up over groups of spots."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from .lsqr import diagonal_lsqr
from .ridge import MAX_ITERATIONS, TOLERANCE, RidgeSetting

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False, kw_only=True)
class RidgeStatistics:
    """Sufficient statistics of features X and targets Y over some spots.

    Attributes:
        num: Number of spots.
        x: Sum of features, (D,).
        y: Sum of targets, (genes,).
        xx: XᵀX, (D, D).
        xy: XᵀY, (D, genes).
        yy: Sum of squared targets, (genes,).
    """

    num: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    xx: NDArray[np.float64]
    xy: NDArray[np.float64]
    yy: NDArray[np.float64]

    @staticmethod
    def of(X: NDArray[np.float64], Y: NDArray[np.float64]) -> RidgeStatistics:
        """Computes the sums; features near their mean over all spots let differences of sums keep their digits."""
        return RidgeStatistics(
            num=len(X), x=X.sum(axis=0), y=Y.sum(axis=0), xx=X.T @ X, xy=X.T @ Y, yy=np.square(Y).sum(axis=0)
        )

    @staticmethod
    def total(parts: list[RidgeStatistics]) -> RidgeStatistics:
        """Adds statistics up."""
        names = [field.name for field in fields(RidgeStatistics)]
        return RidgeStatistics(
            **{name: np.sum([getattr(part, name) for part in parts], axis=0) for name in names}
        )

    def select(self, columns: NDArray[np.int64]) -> RidgeStatistics:
        """Keeps some of the targets."""
        return replace(self, y=self.y[columns], xy=self.xy[:, columns], yy=self.yy[columns])


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


def factorise(
    statistics: RidgeStatistics, origin: NDArray[np.float64], setting: RidgeSetting
) -> RidgeFactors:
    """Scales, centres and rotates by the sums of a train part from whose features ``origin``, (D,), was subtracted."""
    num = statistics.num
    x_mean, y_mean = statistics.x / num, statistics.y / num
    centred = setting.num_components is not None or setting.fit_intercept
    if centred:
        gram = statistics.xx - num * np.outer(x_mean, x_mean)
        cross = statistics.xy - num * np.outer(x_mean, y_mean)
    else:
        gram = statistics.xx + np.outer(statistics.x, origin) + np.outer(origin, statistics.x)
        gram += num * np.outer(origin, origin)
        cross = statistics.xy + np.outer(origin, statistics.y)
    scale = np.ones(len(x_mean))
    if setting.num_components is not None:
        variance = np.diag(gram).clip(0) / num
        # features that vary by rounding only keep their scale, as in scikit-learn
        constant = variance <= num * _EPS * variance + (num * _EPS * (x_mean + origin)) ** 2
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
    total = statistics.yy - num * np.square(y_mean) if setting.fit_intercept else statistics.yy
    return RidgeFactors(
        sigma=sigma,
        scale=scale,
        trace=trace,
        basis=basis,
        shift=x_mean + origin if centred else np.zeros_like(x_mean),
        b=b,
        b_outside=np.sqrt((total - np.square(b).sum(axis=0)).clip(0)),
        y_mean=y_mean if setting.fit_intercept else np.zeros_like(y_mean),
    )
