"""Everything that is looked at, in one value."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch

from .. import ops
from ..ops.implementation import OPERATIONS, ImplementationStatus, choose, requested_implementation
from ..runtime.implementation_request import ENVIRONMENT_VARIABLE as IMPLEMENTATION_VARIABLE
from ..runtime.implementation_request import ImplementationError
from ..weights.organization import ENVIRONMENT_VARIABLE as ORGANIZATION_VARIABLE
from ..weights.organization import organization
from .findings import find_remedies
from .installation import Package, find_packages
from .remedies import Remedy
from .trials import Trial, try_devices

_VARIABLES = (
    ORGANIZATION_VARIABLE,
    IMPLEMENTATION_VARIABLE,
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What this installation holds and what works.

    Attributes:
        python: Version of Python.
        system: Operating system and kind of processor.
        cuda: Names of the CUDA devices, or why there is none.
        packages: What is installed.
        implementation: Which implementation of each scan runs, and why no other.
        on_cuda: Which implementation of each scan runs on a CUDA device, or would if there were one.
        organization: Where on the Hub ``pretrained=True`` looks.
        environment: Variables that change what this package does; None where unset.
        trials: What was computed on each device.
        found: Remedies that apply here, what makes the models fail first.
    """

    python: str
    system: str
    cuda: tuple[str, ...]
    packages: tuple[Package, ...]
    implementation: ImplementationStatus
    on_cuda: dict[str, str]
    organization: str
    environment: dict[str, str | None]
    trials: tuple[Trial, ...]
    found: tuple[Remedy, ...]

    @property
    def works(self) -> bool:
        """Whether our models work on every device."""
        return all(trial.works for trial in self.trials)


def diagnose() -> Diagnosis:
    """Looks at this installation and computes something small on each of its devices."""
    packages = find_packages()
    trials = try_devices()
    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cuda=_cuda(),
        packages=packages,
        implementation=ops.implementation_status(),
        on_cuda={operation: _choice_on_cuda(operation) for operation in OPERATIONS},
        organization=organization(),
        environment={name: os.environ.get(name) for name in _VARIABLES},
        trials=trials,
        found=find_remedies(packages, trials),
    )


def _cuda() -> tuple[str, ...]:
    """Names the CUDA devices, or says why there is none."""
    if torch.cuda.is_available():
        return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    if torch.version.cuda is None:
        return ("none: this torch was built without CUDA",)
    return (f"none: torch was built for CUDA {torch.version.cuda}, but sees no device or no driver",)


def _choice_on_cuda(operation: str) -> str:
    """Names the implementation for float32 on CUDA, or says why there is none."""
    try:
        return choose(operation, requested_implementation(), "cuda", torch.float32)
    except ImplementationError as error:
        return f"none: {error}"
