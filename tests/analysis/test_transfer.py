"""Closed forms of scans with constant coefficients, against golden numbers and against the scan itself."""

from pathlib import Path

import numpy as np
import pytest

from timm_mvhybrid.analysis import half_power_frequency, transfer_function
from timm_mvhybrid.runtime.errors import ParameterError

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "finetuning" / "frequency.npz"))
# of the goldens, whose 1 − a of 5e-5 carries the rounding of a
TOLERANCE = 1e-12


def gain(*arguments):
    return np.abs(transfer_function(*arguments))


def test_continuous_poles():
    for rate, expected in zip(GOLDEN["lam"], GOLDEN["continuous"], strict=True):
        found = gain([-rate], None, 1.0, 1.0, None, GOLDEN["omega"], "continuous")
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
        complex_poles = GOLDEN["continuous_complex_pole"][list(GOLDEN["lam"]).index(rate)]
        for frequency, moved in zip(GOLDEN["complex_omega"], complex_poles, strict=True):
            found = gain([-rate + 1j * frequency], None, 1.0, 1.0, None, GOLDEN["omega"], "continuous")
            np.testing.assert_allclose(found, moved, rtol=TOLERANCE)


@pytest.mark.parametrize("discretisation", ["euler", "zoh"])
def test_discrete_poles(discretisation):
    for delta, by_rate in zip(GOLDEN["delta"], GOLDEN[f"discrete_{discretisation}"], strict=True):
        for rate, expected in zip(GOLDEN["lam"], by_rate, strict=True):
            found = gain([-rate], float(delta), 1.0, 1.0, None, GOLDEN["omega"], discretisation)
            np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


def test_five_states_with_a_skip():
    for delta, expected in zip(GOLDEN["delta"], GOLDEN["five_state_gain"], strict=True):
        found = gain(-GOLDEN["lam"], float(delta), 1.0, GOLDEN["C"], float(GOLDEN["D"]), GOLDEN["omega"])
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


def test_half_power_where_it_is_reached_and_nowhere_else():
    decay = np.exp(-GOLDEN["delta"][:, None] * GOLDEN["lam"])
    found = half_power_frequency(decay)
    assert np.array_equal(np.isfinite(found), GOLDEN["has_half_power"])
    # the goldens take the arc cosine near 1, which leaves them 1e-16/ω of error
    np.testing.assert_allclose(found, GOLDEN["half_power_omega"], atol=1e-12, rtol=0)
    reached = np.isfinite(found)
    for a, omega in zip(decay[reached], found[reached], strict=True):
        h = gain([np.log(a)], 1.0, 1.0, 1.0, None, [0.0, omega])
        assert h[1] / h[0] == pytest.approx(np.sqrt(0.5), rel=1e-12)


def test_half_power_at_the_ends_of_its_range():
    assert half_power_frequency(3 - 2 * np.sqrt(2)) == pytest.approx(np.pi)
    assert np.isnan(half_power_frequency([0.17, 0.0, -0.5, 1.0, 1.5, np.nan])).all()
    # 1 − a of 1e-12, to all digits that a itself has
    assert half_power_frequency(1 - 2.0**-40) == pytest.approx(2.0**-40, rel=1e-11)


def test_a_conjugate_pair_is_real_at_zero_and_peaks_near_its_frequency():
    poles, b, c = np.array([-0.05 + 1j, -0.05 - 1j]), [1.0, 1.0], [0.5 - 0.2j, 0.5 + 0.2j]
    h = transfer_function(poles, 0.3, b, c, None, [0.0, 0.3, 1.5])
    assert h[0].imag == pytest.approx(0.0, abs=1e-15)
    assert abs(h[1]) > 3 * abs(h[0])
    assert abs(h[1]) > 3 * abs(h[2])


def test_a_pole_of_zero_has_the_limit_of_the_hold():
    exact = transfer_function([0.0], 0.5, 1.0, 1.0, None, [1.0], "zoh")
    assert exact == pytest.approx(transfer_function([0.0], 0.5, 1.0, 1.0, None, [1.0], "euler"))
    assert np.isinf(gain([0.0], None, 1.0, 1.0, None, 0.0, "continuous"))


def test_omega_keeps_its_shape():
    assert transfer_function([-1.0], 0.1, 1.0, 1.0, 0.5, 0.3).shape == ()
    assert transfer_function([-1.0, -2.0], 0.1, 1.0, 1.0, 0.5, np.zeros((2, 3))).shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0.1, 1.0, 1.0, None, 0.0), "eigenvalues"),
        (([-1.0], None, 1.0, 1.0, None, 0.0), "delta"),
        (([-1.0], -0.1, 1.0, 1.0, None, 0.0), "delta"),
        (([-1.0], 0.1, [1.0, 2.0], 1.0, None, 0.0), "`B`"),
        (([-1.0], 0.1, 1.0, [1.0, 2.0], None, 0.0), "`C`"),
        (([-1.0], 0.1, 1.0, 1.0, None, 0.0, "tustin"), "discretisation"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ParameterError, match=message):
        transfer_function(*arguments)
