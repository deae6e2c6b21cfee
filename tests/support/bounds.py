"""Bounds of rounding errors that follow from the arithmetic: its unit, its number of roundings, its condition.

``u`` is the unit roundoff, half the distance from 1 to the next number: one rounding moves a result by a factor of
at most 1 + u. A computation that is stable gives the exact results of inputs that were moved by a few roundings
(backward error), and how far such a move takes the results is the condition of the problem, which no implementation,
CPU or number of threads decides. So

    error ≤ condition · backward error,

with the condition measured: float64 results of inputs moved by u, against those of inputs as they are.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM 2002: condition and backward error
in 1.5 and 1.6, γ_n in lemma 3.1. N. J. Higham and T. Mary, A New Approach to Probabilistic Rounding Error Analysis,
SIAM J. Sci. Comput. 41 (2019), A2815-A2835, theorem 2.4: n roundings of independent sign come to λ √n u, exceeded
with a probability of at most 2 exp(-λ²/2).
"""

import numpy as np
import torch

CONFIDENCE = 2.0
"""λ. A rounding counts in full, u, where its root-mean-square is u/√3 at most: 2 is 3.5 of these deviations, and the
error of a whole tensor, a root-mean-square itself, lies close to one."""


def unit_roundoff(dtype):
    """u: half the distance from 1 to the next number of a dtype of torch or NumPy."""
    return float((torch if isinstance(dtype, torch.dtype) else np).finfo(dtype).eps) / 2


def gamma(roundings, dtype):
    """γ_n = n u / (1 - n u), which no sequence of n roundings exceeds."""
    product = roundings * unit_roundoff(dtype)
    assert product < 1, f"{roundings} roundings of {dtype} may leave no digit"
    return product / (1 - product)


def probable_roundings(roundings):
    """λ √n, in units of u: what n roundings of independent sign come to."""
    return CONFIDENCE * max(1, roundings) ** 0.5


def named(results):
    """A dict of results, or a list of them by position."""
    return results if isinstance(results, dict) else dict(enumerate(results))


def widened(inputs):
    """The inputs, a dict or a list, in float64, with a gradient of their own where they had one."""

    def widen(x):
        return None if x is None else x.detach().double().requires_grad_(x.requires_grad)

    if isinstance(inputs, dict):
        return {name: widen(x) for name, x in inputs.items()}
    return [widen(x) for x in inputs]


def moved(inputs, generator, *, step):
    """The inputs with each number moved by a factor of 1 ± ``step``, its sign drawn."""

    def move(x):
        if x is None:
            return None
        # in float64, or 1 ± a small step would be 1
        signs = torch.randint(0, 2, x.shape, generator=generator).double() * 2 - 1
        return (x.detach() * (1 + step * signs)).requires_grad_(x.requires_grad)

    if isinstance(inputs, dict):
        return {name: move(x) for name, x in inputs.items()}
    return [move(x) for x in inputs]


def rounded_otherwise(x, rng):
    """An array of NumPy whose numbers are moved to the next one of their dtype, up, down or not at all."""
    return np.choose(rng.integers(0, 3, x.shape), [np.nextafter(x, -np.inf), x, np.nextafter(x, np.inf)])


def condition(function, inputs, exact, *, draws=8, step=2.0**-30):
    """How far the results go, by the inputs' relative step: root-mean-square over draws of the whole tensor's change.

    Args:
        function: From inputs to a dict or a list of float64 results.
        inputs: Dict or list of float64 tensors, or None for those left out.
        exact: The results at the inputs.
        draws: Moves that are drawn; the mean is over them.
        step: Relative move, small enough for the change to be linear, large enough to stand above float64's rounding.

    Returns:
        A dict: norm of a result's change per unit of relative step.
    """
    generator = torch.Generator().manual_seed(17)
    exact, squares = named(exact), {}
    for _ in range(draws):
        for name, value in named(function(moved(inputs, generator, step=step))).items():
            change = (value.detach() - exact[name].detach()).norm() / step
            squares[name] = squares.get(name, 0) + change.item() ** 2 / draws
    return {name: square**0.5 for name, square in squares.items()}


def away_from_kinks(draw, function, *, reach=2.0**-20):
    """The first inputs of ``draw(0)``, ``draw(1)``, … from where no kink, as of a ReLU, is within a relative reach.

    Across a kink a derivative jumps, and which side a rounded number falls on is chance. It shows in a condition that
    depends on the step.
    """
    for seed in range(100):
        inputs = widened(drawn := draw(seed))
        exact = named(function(inputs))
        near, far = (condition(function, inputs, exact, step=step) for step in (2.0**-30, reach))
        if all(far[name] <= 2 * near[name] + 1e-9 for name in near):
            return drawn
    raise AssertionError(f"100 draws have kinks within {reach}")


def count_roundings(actual, exact, conditions, *, dtype=torch.float32):
    """Error of each result, as the number of roundings of the inputs and of the result that would come to it.

    ‖actual - exact‖ / (u √(condition² + ‖exact‖²)): about 1 where every input and the result is rounded once.

    Returns:
        A dict; infinite where a result is not finite.
    """
    counts, actual = {}, named(actual)
    assert actual.keys() == named(exact).keys()
    for name, value in named(exact).items():
        found, value = actual[name].detach(), value.detach()
        assert found.shape == value.shape, name
        unit = unit_roundoff(dtype) * (conditions[name] ** 2 + value.norm().item() ** 2) ** 0.5
        count = (found.double() - value).norm().item() / max(unit, 1e-300)
        counts[name] = count if count == count else float("inf")
    return counts


def assert_accurate(actual, function, inputs, *, roundings, dtype=torch.float32, exact=None):
    """Asserts that an error is that of ``roundings`` roundings, whatever their order and signs.

    Args:
        actual: Dict or list of results computed in ``dtype``.
        function: From float64 inputs to the same results by the plain definition.
        inputs: What ``actual`` was computed from.
        roundings: n, the roundings on the longest way from an input to a result: summands of the longest sum, steps
            of a recurrence.
        dtype: What was computed in.
        exact: Results in float64 where a file holds them; None computes them by ``function``.
    """
    inputs = widened(inputs)
    exact = named(function(inputs) if exact is None else exact)
    counts = count_roundings(actual, exact, condition(function, inputs, exact), dtype=dtype)
    limit = probable_roundings(roundings)
    for name, count in counts.items():
        assert count <= limit, f"{name}: an error of {count:.3g} roundings, where {limit:.3g} are due"


def assert_near(actual, expected, *, roundings):
    """Asserts that two computations of the same numbers differ by no more than their roundings.

    Each is off by at most γ_n of the terms that it adds up (Higham 2002, 3.1). These are taken to be as large as the
    largest number of the result: so it is for scores, normalised features and losses.

    Args:
        actual: A tensor.
        expected: A tensor of the same shape and dtype.
        roundings: n of either computation: summands of its longest sum, layer upon layer.
    """
    scale = expected.detach().double().abs().max().item()
    bound = 2 * gamma(roundings, expected.dtype) * scale
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound)
