"""Which implementation of a scan runs: the requested one, or the best for device, dtype and installation.

``auto`` takes, on a CUDA device, mamba-ssm's kernels where they are installed, then our Triton kernels; on a CPU the
kernels that numba compiles, where numba can be imported; and plain torch (``cpu``) anywhere else. A request that
cannot be met raises ``ImplementationError``; nothing is replaced silently. The request is one a process, not one a thread,
because autograd runs the backward pass in threads of its own.
"""

import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch

from ..runtime.errors import ParameterError
from ..runtime.implementation_request import (
    IMPLEMENTATIONS,
    ImplementationError,
    check_request,
    misnamed,
    requested_by_environment,
)
from .fused.native import cache_failure

OPERATIONS = {"selective_scan": "selective_scan", "ssd_scan": "ssd", "complex_scan": "complex_scan"}
"""The scans, and the folder of each."""

Implementation = Literal["auto", "reference", "cpu", "numba", "triton", "mamba_ssm"]

_NOT_TAKEN = {
    True: "could run; the automatic choice prefers the above",
    False: "could run; another was requested",
}
_REMEDY = 'take another with timm_mvhybrid.ops.use_implementation(...), for instance "auto"'


@dataclass(frozen=True, kw_only=True)
class ScanStatus:
    """What runs for one scan on one kind of device.

    Attributes:
        operation: ``selective_scan``, ``ssd_scan``, ``complex_scan`` or ``causal_conv1d``.
        device_type: ``cpu`` or ``cuda``.
        dtype: Dtype of the input.
        chosen: Implementation that runs, or None where the request cannot be met.
        others: Every other implementation, with the reason why it does not run.
    """

    operation: str
    device_type: str
    dtype: torch.dtype
    chosen: str | None
    others: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ImplementationStatus:
    """What was requested, and what therefore runs; prints as a table.

    Attributes:
        requested: The request in force.
        scans: One entry an operation and kind of device.
        notes: What else is worth knowing, such as that compiled kernels cannot be kept on disk.
    """

    requested: str
    scans: tuple[ScanStatus, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Lists the choices, and under each the reasons why the others are not taken."""
        lines = [f"requested: {self.requested}"]
        for scan in self.scans:
            dtype = str(scan.dtype).removeprefix("torch.")
            lines.append(
                f"{scan.operation} on {scan.device_type}, {dtype}: {scan.chosen or 'none: request cannot be met'}"
            )
            lines += [f"  not {name}: {reason}" for name, reason in scan.others.items()]
        return "\n".join([*lines, *self.notes])


class use_implementation:  # a function to its users, who may also open it with ``with``
    """Chooses the implementation of all scans from now on, or within a ``with`` statement.

    Graphs that were recorded earlier: compiled ones are compiled again, exported ones hold plain torch operations, and
    scripted ones follow the request at run time.

    Args:
        name: ``auto``, ``reference`` (the loop that specifies the scan), ``cpu`` (plain torch, on any device),
            ``numba`` (kernels for CPUs), ``triton`` or ``mamba_ssm``.

    Raises:
        ParameterError: There is no such implementation.
        ImplementationError: It cannot run on any device of this machine.

    Examples:
        >>> from timm_mvhybrid import ops
        >>> with ops.use_implementation("reference"):
        ...     print(ops.implementation_status().requested)
        reference
    """

    def __init__(self, name: Implementation) -> None:
        global _requested
        if problem := misnamed(name, "implementation"):
            raise ParameterError(problem)
        if name not in ("auto", "reference", "cpu"):
            devices = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
            reasons = [
                {device: why_not(operation, name, device, torch.float32) for device in devices}
                for operation in OPERATIONS
            ]
            if all(all(reason.values()) for reason in reasons):
                raise ImplementationError(
                    f"implementation {name!r} cannot run here: {reasons[0][devices[0]]}; {_REMEDY}"
                )
        self._previous = _requested
        _requested = name

    def __enter__(self) -> None:
        """Keeps the choice that the constructor made."""

    def __exit__(self, *exception: object) -> None:
        """Restores the choice from before the constructor."""
        global _requested
        _requested = self._previous


def requested_implementation() -> str:
    """Returns the request in force: of ``use_implementation``, else of the environment, else ``auto``."""
    return _requested


def implementation_status() -> ImplementationStatus:
    """Says which implementation of each scan runs, and why every other does not.

    Returns:
        The choice for float32 input on the CPU and, where there is one, on a CUDA device; printable.
    """
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    scans = []
    for device in devices:
        for operation in OPERATIONS:
            try:
                chosen = choose(operation, _requested, device, torch.float32)
            except ImplementationError:
                chosen = None
            others = {
                name: why_not(operation, name, device, torch.float32) or _NOT_TAKEN[_requested == "auto"]
                for name in IMPLEMENTATIONS[1:]
                if name != chosen
            }
            scans.append(
                ScanStatus(
                    operation=operation, device_type=device, dtype=torch.float32, chosen=chosen, others=others
                )
            )
        reason = why_not_causal_conv1d(device, torch.float32)
        scans.append(
            ScanStatus(
                operation="causal_conv1d",
                device_type=device,
                dtype=torch.float32,
                chosen="cpu" if reason else "mamba_ssm",
                others={"mamba_ssm": reason} if reason else {"cpu": "could run; the package is faster"},
            )
        )
    failure = cache_failure()
    notes = (
        f"compiled again in each process, because they cannot be kept on disk: numba's kernels ({failure})",
    )
    return ImplementationStatus(requested=_requested, scans=tuple(scans), notes=notes if failure else ())


def choose(operation: str, requested: str, device_type: str, dtype: torch.dtype) -> str:
    """Names the implementation that runs.

    The answer depends only on the arguments and on what is installed, so that the backward pass of a scan finds the
    implementation of its forward pass again.

    Raises:
        ImplementationError: The request cannot be met.
    """
    if requested == "current":
        requested = _requested
    if requested == _requested:
        check_request(requested)
    if requested == "auto":
        preferred = {"cuda": ("mamba_ssm", "triton"), "cpu": ("numba",)}.get(device_type, ())
        return next(
            (name for name in preferred if why_not(operation, name, device_type, dtype) is None), "cpu"
        )
    reason = why_not(operation, requested, device_type, dtype)
    if reason is not None:
        raise ImplementationError(
            f"implementation {requested!r} was requested, but {operation} cannot use it: {reason}; {_REMEDY}"
        )
    return requested


def why_not(operation: str, name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Says why an implementation cannot run, or None if it can; arguments as for ``choose``."""
    kind = str(dtype).removeprefix("torch.")
    if operation == "complex_scan" and name in ("triton", "mamba_ssm"):
        return 'these kernels take real eigenvalues only (a model with `eigenvalues="real"`)'
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed (it comes with torch's CUDA packages; pip install triton)"
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if device_type != "cuda" and not (interpreted and device_type == "cpu"):
            return (
                f"the input is on {device_type}; Triton needs a CUDA device, "
                "or TRITON_INTERPRET=1 in the environment for its slow interpreter on the CPU"
            )
        if not interpreted and dtype not in _TRITON_DTYPES[operation]:
            return f"the Triton kernels do not take {kind}"
    elif name == "numba":
        if importlib.util.find_spec("numba") is None:
            return "numba is not installed (pip install numba)"
        if device_type != "cpu":
            return f"the input is on {device_type}; numba compiles for CPUs"
        return _import_failure(f"{__package__}.{OPERATIONS[operation]}.numba")
    elif name == "mamba_ssm":
        extension = {"selective_scan": "selective_scan_cuda", "ssd_scan": "mamba_ssm"}[operation]
        if importlib.util.find_spec(extension) is None:
            return f"mamba-ssm is not installed (no module {extension!r}; pip install mamba-ssm)"
        if device_type != "cuda":
            return f"the input is on {device_type}; mamba-ssm needs a CUDA device"
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"mamba-ssm does not take {kind}"
        return _import_failure(f"{__package__}.{OPERATIONS[operation]}.mamba_ssm")
    return None


def why_not_causal_conv1d(device_type: str, dtype: torch.dtype) -> str | None:
    """Says why the causal-conv1d package does not run Vim's convolutions, or None if it does."""
    if _requested not in ("auto", "mamba_ssm"):
        return f"implementation {_requested!r} was requested"
    if not _HAS_CAUSAL_CONV1D:
        return "causal-conv1d is not installed (pip install causal-conv1d)"
    if device_type != "cuda":
        return f"the input is on {device_type}; causal-conv1d needs a CUDA device"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"causal-conv1d does not take {str(dtype).removeprefix('torch.')}"
    return None


@functools.cache
def _import_failure(module: str) -> str | None:
    """Says why an installed package cannot be imported; mamba-ssm built for another torch is often found so."""
    try:
        importlib.import_module(module)
    except Exception as error:  # an extension may raise anything
        return f"{module.rpartition('.')[2]} is installed but cannot be imported: {type(error).__name__}: {error}"
    return None


def load(operation: str, name: str) -> ModuleType:
    """Imports the module of an implementation, which has ``forward``, ``backward`` and ``num_chunks``.

    Raises:
        ImplementationError: The reference was requested within a scripted graph; it is not an operator.
    """
    if name == "reference":
        raise ImplementationError(
            f"implementation 'reference' of {operation} cannot run inside a scripted graph, where the scan is one "
            f"operator; {_REMEDY}"
        )
    return importlib.import_module(f"{__package__}.{OPERATIONS[operation]}.{name}")


# looked up once: mixers ask at every call, even while torch.compile traces them
_HAS_CAUSAL_CONV1D = importlib.util.find_spec("causal_conv1d") is not None

_TRITON_DTYPES = {
    "selective_scan": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    "ssd_scan": (torch.float16, torch.bfloat16, torch.float32),
}


# a misspelt one is an error where it matters, at a scan or at the start of a command, not at the import, which doctor
# needs too
_requested: str = requested_by_environment()
