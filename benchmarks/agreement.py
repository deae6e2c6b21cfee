"""Results and exact results → errors, or an exception that stops the benchmark before it times anything."""

from collections.abc import Mapping

from torch import Tensor


class DisagreementError(Exception):
    """A contender does not compute what the reference computes."""


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Returns the largest deviation in units of the largest exact number; infinite where anything is not finite.

    Args:
        actual: Of any floating dtype.
        exact: Of the same shape, float64.

    Returns:
        The error, 1 for zeros in place of the result.
    """
    if actual.shape != exact.shape:
        return float("inf")
    deviation = (actual.double() - exact).abs().max().item()
    if deviation == 0:
        return 0.0
    error = deviation / max(exact.abs().max().item(), 1e-300)
    return error if error == error else float("inf")


def check_agreement(
    name: str, actual: Mapping[str, Tensor], exact: Mapping[str, Tensor], limit: float
) -> dict[str, float]:
    """Compares a contender's outputs and gradients with the reference's.

    Args:
        name: Of the contender.
        actual: Its outputs and gradients by name.
        exact: The float64 reference's, under the same names.
        limit: Largest :func:`relative_error` allowed.

    Returns:
        The errors by name.

    Raises:
        DisagreementError: An error exceeds the limit, or names differ.
    """
    if not exact or set(actual) != set(exact):
        raise DisagreementError(f"{name} gives {sorted(actual)}, the reference {sorted(exact)}")
    errors = {key: relative_error(actual[key], exact[key]) for key in exact}
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] <= limit:
        raise DisagreementError(
            f"{name} disagrees with the float64 reference: relative error {errors[worst]:.2g} in {worst}, "
            f"allowed {limit:.2g}"
        )
    return errors
