"""Scans and spectra as pure functions: tensors → tensors, no modules, no parameters.

Every operator stands beside a ``*_reference``, a plain loop that is its specification.
"""

from ..runtime.implementation_request import ImplementationError
from .complex_scan import complex_scan, complex_scan_reference
from .einfft import einfft
from .implementation import implementation_status, use_implementation
from .selective_scan import selective_scan, selective_scan_reference
from .spectral import inverse_token_dft, token_dft
from .ssd import ssd_scan, ssd_scan_reference

__all__ = [
    "ImplementationError",
    "complex_scan",
    "complex_scan_reference",
    "einfft",
    "implementation_status",
    "inverse_token_dft",
    "selective_scan",
    "selective_scan_reference",
    "ssd_scan",
    "ssd_scan_reference",
    "token_dft",
    "use_implementation",
]
