"""What the scans of a model do to eigenvalues, frequencies and gradients: weights + images → numbers that can be checked.

Closed forms are exact; frozen gains and Jacobians are measured at images. Nothing here says anything about tissue by itself,
and nothing about trained models from random weights.
"""

from .frozen import FrozenGain, frozen_gain
from .jacobian import grating, jacobian_gain
from .spectrum import TokenSpectrum, token_spectrum
from .transfer import half_power_frequency, transfer_function

__all__ = [
    "FrozenGain",
    "TokenSpectrum",
    "frozen_gain",
    "grating",
    "half_power_frequency",
    "jacobian_gain",
    "token_spectrum",
    "transfer_function",
]
