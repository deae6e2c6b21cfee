"""What the scans of a model do to eigenvalues, frequencies and gradients: weights + images → numbers that can be checked.

Closed forms are exact; frozen gains and Jacobians are measured at images. Nothing here says anything about tissue by itself,
and nothing about trained models from random weights.
"""

from .eigenvalues import analyse_eigenvalues
from .findings import Findings, write_findings
from .frequency import FrequencyOptions, analyse_frequency
from .frozen import FrozenGain, frozen_gain
from .jacobian import grating, jacobian_gain
from .options import AnalysisOptions
from .spectrum import TokenSpectrum, token_spectrum
from .stability import StabilityOptions, analyse_stability, mask_gradients
from .transfer import half_power_frequency, transfer_function

__all__ = [
    "AnalysisOptions",
    "Findings",
    "FrequencyOptions",
    "FrozenGain",
    "StabilityOptions",
    "TokenSpectrum",
    "analyse_eigenvalues",
    "analyse_frequency",
    "analyse_stability",
    "frozen_gain",
    "grating",
    "half_power_frequency",
    "jacobian_gain",
    "mask_gradients",
    "token_spectrum",
    "transfer_function",
    "write_findings",
]
