"""LSQR for many targets at once on a diagonal system, stopping where the one-target solver would."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
