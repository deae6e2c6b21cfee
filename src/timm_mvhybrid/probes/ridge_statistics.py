"""Means and products over spots that a ridge regression can be solved from, exactly or by LSQR, and that join over groups."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .ridge import MAX_ITERATIONS, TOLERANCE, RidgeSetting

_CONDITION_LIMIT = 1e8


def diagonal_lsqr(
    sigma: NDArray[np.float64],
    b: NDArray[np.float64],
    b_outside: NDArray[np.float64],
    damp: float,
    tolerance: float,
    max_iterations: int,
) -> NDArray[np.float64]:
    """Solves min ‖A x − b‖² + damp² ‖x‖² for every column of b by LSQR, with A diagonal above rows of zeros.

    Any least-squares problem takes this form in its singular bases, and LSQR's scalars and stopping rules do not change
    with the basis: with A = U diag(sigma) Vᵀ, the n rows of U shrink to its columns plus one row for the part of b
    outside of their span. So early stopping is reproduced, without touching the n rows in any iteration.

    Source: Paige and Saunders, LSQR: An algorithm for sparse linear equations and sparse least squares, ACM TOMS 8(1),
    1982, sections 4 to 6; stopping rules as in SciPy's ``lsqr`` (atol = btol = tolerance, conlim = 1e8).

    Args:
        sigma: Singular values of A, (k,).
        b: Right-hand sides in the basis U, (k, genes).
        b_outside: Norm of the part of each right-hand side outside of the span of U, (genes,).
        damp: Square root of the ridge penalty.
        tolerance: Of the stopping rules.
        max_iterations: Largest number of iterations.

    Returns:
        x in the basis V, (k, genes).
    """
    num_rows, num_targets = b.shape
    x_all = np.zeros((num_rows, num_targets))
    b_norm_all = np.sqrt(np.square(b).sum(axis=0) + np.square(b_outside))
    usable = b_norm_all > 0
    active = np.flatnonzero(usable)
    scale = sigma[:, None]
    b_norm = beta = b_norm_all[active]
    # u without its outside part, which A never maps anywhere and which only shortens
    u, outside = b[:, active] / beta, b_outside[active] / beta
    v = scale * u
    alpha = np.linalg.norm(v, axis=0)
    keep = alpha > 0
    active, b_norm, alpha = active[keep], b_norm[keep], alpha[keep]
    u, outside, v = u[:, keep], outside[keep], v[:, keep] / alpha
    w, x = v.copy(), np.zeros_like(v)
    rho_bar, phi_bar = alpha.copy(), b_norm.copy()
    a_norm_squared, d_norm_squared, damped_residual = (np.zeros_like(alpha) for _ in range(3))
    for _ in range(max_iterations):
        if len(active) == 0:
            break
        u = scale * v - alpha * u
        outside = -alpha * outside
        beta = np.sqrt(np.square(u).sum(axis=0) + np.square(outside))
        positive = np.where(beta > 0, beta, 1.0)
        u, outside = u / positive, outside / positive
        a_norm_squared = a_norm_squared + alpha**2 + beta**2 + damp**2
        v = scale * u - beta * v
        alpha = np.linalg.norm(v, axis=0)
        v = v / np.where(alpha > 0, alpha, 1.0)
        # two rotations: one takes the damping in, one makes the bidiagonal matrix triangular
        rho_damped = np.sqrt(rho_bar**2 + damp**2)
        damped_residual = damped_residual + (damp / rho_damped * phi_bar) ** 2
        phi_bar = rho_bar / rho_damped * phi_bar
        rho = np.sqrt(rho_damped**2 + beta**2)
        cosine, sine = rho_damped / rho, beta / rho
        theta, rho_bar = sine * alpha, -cosine * alpha
        phi, phi_bar = cosine * phi_bar, sine * phi_bar
        d_norm_squared = d_norm_squared + np.square(w / rho).sum(axis=0)
        x = x + phi / rho * w
        w = v - theta / rho * w
        a_norm = np.sqrt(a_norm_squared)
        residual = np.sqrt(phi_bar**2 + damped_residual)
        gradient = alpha * np.abs(sine * phi)
        relative_size = a_norm * np.linalg.norm(x, axis=0) / b_norm
        relative_residual = residual / b_norm
        relative_gradient = gradient / (a_norm * residual + np.finfo(np.float64).eps)
        inverse_condition = 1 / (a_norm * np.sqrt(d_norm_squared) + np.finfo(np.float64).eps)
        stopped = (
            (relative_residual <= tolerance * (1 + relative_size))
            | (relative_gradient <= tolerance)
            | (inverse_condition <= 1 / _CONDITION_LIMIT)
        )
        if stopped.any():
            x_all[:, active[stopped]] = x[:, stopped]
            go = ~stopped
            active, b_norm, alpha, rho_bar, phi_bar = (
                values[go] for values in (active, b_norm, alpha, rho_bar, phi_bar)
            )
            a_norm_squared, d_norm_squared, damped_residual, outside = (
                values[go] for values in (a_norm_squared, d_norm_squared, damped_residual, outside)
            )
            u, v, w, x = (values[:, go] for values in (u, v, w, x))
    x_all[:, active] = x
    return x_all


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
