"""Everything that is looked at, in one value, and the remedies that apply to what is installed and what failed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .. import ops
from ..ops.implementation import OPERATIONS, ImplementationStatus, choose, requested_implementation
from ..runtime.implementation_request import ENVIRONMENT_VARIABLE as IMPLEMENTATION_VARIABLE
from ..runtime.implementation_request import ImplementationError, check_request
from ..runtime.provenance import installed_version
from ..weights.organization import ENVIRONMENT_VARIABLE as ORGANIZATION_VARIABLE
from ..weights.organization import organization
from .installation import Package, find_packages, version_numbers
from .trials import Trial, try_devices


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A complaint and what to do.

    Attributes:
        complaint: What users see.
        remedy: What to do.
        fatal: Whether it makes our models fail, in an installation where it was found.
    """

    complaint: str
    remedy: str
    fatal: bool = False


COMPLAINTS = (
    Remedy(
        complaint="mamba-ssm does not build: it needs nvcc and the CUDA toolkit",
        remedy="do not install it: everything here runs in plain torch on a CPU, and by Triton on CUDA",
    ),
    Remedy(
        complaint="undefined symbol when mamba-ssm or causal-conv1d is imported",
        remedy="it was built for another torch: pip uninstall mamba-ssm causal-conv1d, or build both for this one: "
        "pip install --no-cache-dir --no-build-isolation --force-reinstall --no-deps causal-conv1d mamba-ssm",
    ),
    Remedy(
        complaint="no mamba-ssm wheel for this torch or Python",
        remedy="do without; its kernels are only one of the implementations (timm_mvhybrid.ops.implementation_status())",
    ),
    Remedy(
        complaint="Vim's own mamba_ssm is installed, and other code wants the original",
        remedy="keep Vim in an environment of its own; this package needs neither",
    ),
    Remedy(
        complaint="state-space models do not run on a CPU",
        remedy="these do; slow only on many images, for which more processes and a larger batch of 'timm-mvhybrid embed' help",
    ),
    Remedy(
        complaint="NaN under mixed precision",
        remedy="scans, decay rates and EinFFT stay in float32 here; prefer bfloat16 to float16, and look for NaN in the "
        "weights: a file of ours that holds any is refused when it is loaded",
    ),
    Remedy(
        complaint="images are not 256 px",
        remedy="any multiple of 16 px works, square or not; keep the resolution near 0.5 µm/px, which matters more",
    ),
    Remedy(
        complaint="export to ONNX or torch.export fails on custom operators",
        remedy="'timm-mvhybrid export-onnx --model NAME --output FILE.onnx'; torch.export and torch.jit.trace work as they are",
    ),
    Remedy(
        complaint="a pipeline does not know a new encoder",
        remedy="timm_mvhybrid.integrations has one module for each pipeline, whose docstring is the recipe",
    ),
    Remedy(
        complaint="a pipeline expects another number of features",
        remedy="our backbones give 384 (CLAM: --embed_dim 384), or 768 where class token and mean are joined",
    ),
    Remedy(
        complaint="features differ between pipelines: class token, or class token and mean",
        remedy="ours give the class token; global_pool='avg' gives the mean of the patch tokens. LightlyTrain gives the "
        "mean, 'timm-mvhybrid embed --global-pool token+avg' both",
    ),
    Remedy(
        complaint="features differ between pipelines: normalisation",
        remedy="take mean and std of model.pretrained_cfg (H&E, not ImageNet): timm.data.resolve_data_config; "
        "tiatoolbox and LightlyTrain must be told them, see timm_mvhybrid.integrations",
    ),
    Remedy(
        complaint="a pipeline pins another timm",
        remedy="install this package after the pipeline: pip takes a timm that suits it, and names the pin it breaks; "
        "'tests/pipelines' of the repository lists the versions that were tried",
    ),
)


# older ones run what a pickle in checkpoint_path= holds
OLDEST_TIMM = "1.0.26"
NEWEST_TIMM_TRIED = "1.0.31"
# from here on it refuses classes of torch, such as CrossEntropyLoss, where kaiko-eva asks for a loss
_TOO_NEW_JSONARGPARSE_FOR_EVA = "4.52"
_NAMESAKE_HOMES = {
    "hest": "github.com/mahmoodlab/HEST",
    "trident": "github.com/mahmoodlab/TRIDENT",
}


def find_remedies(packages: Sequence[Package], trials: Sequence[Trial]) -> tuple[Remedy, ...]:
    """Collects what is wrong here, what makes the models fail first; fatal is what failed on a device."""
    by_name = {package.name: package for package in packages}
    found = [*_of_timm(by_name["timm"].version, trials), *_of_kernels(by_name, trials)]
    found += [*_of_request(trials), *_of_pipelines(by_name), *_of_weights()]
    found += _of_trials(trials)
    return tuple(sorted(found, key=lambda remedy: not remedy.fatal))


def _fails(trials: Sequence[Trial], device_type: str = "") -> bool:
    return any(not trial.works and trial.device.startswith(device_type) for trial in trials)


def _of_timm(version: str | None, trials: Sequence[Trial]) -> Iterator[Remedy]:
    numbers = version_numbers(version or "")
    if not numbers:
        return
    if numbers < version_numbers(OLDEST_TIMM):
        yield Remedy(
            complaint=f"timm {version} is older than {OLDEST_TIMM}, the oldest that our models run with",
            remedy=f"pip install 'timm>={OLDEST_TIMM}', or install this package after the pipeline that brought it",
            fatal=_fails(trials),
        )
    elif numbers[:3] > version_numbers(NEWEST_TIMM_TRIED):
        yield Remedy(
            complaint=f"timm {version} is newer than {NEWEST_TIMM_TRIED}, the newest that was tried",
            remedy=f"if something fails, pip install 'timm=={NEWEST_TIMM_TRIED}'",
            fatal=_fails(trials),
        )


def _of_kernels(packages: dict[str, Package], trials: Sequence[Trial]) -> Iterator[Remedy]:
    rebuild = "pip install --no-cache-dir --no-build-isolation --force-reinstall --no-deps"
    for name in ("mamba-ssm", "causal-conv1d"):
        note = packages[name].note
        if "cannot be imported" in note:
            yield Remedy(
                complaint=f"{name} {packages[name].version or ''} is installed but {note}".replace("  ", " "),
                remedy=f"it was built for another torch: pip uninstall {name}, which our models do not need, or build "
                f"it for torch {packages['torch'].version}: {rebuild} {name}",
                fatal=_fails(trials, "cuda"),
            )
        elif note:
            yield Remedy(
                complaint=f"the installed mamba_ssm is {note}, which lacks what Mamba-2 models of others need",
                remedy="keep Vim in an environment of its own; our models need no mamba-ssm: pip uninstall mamba-ssm",
            )


def _of_request(trials: Sequence[Trial]) -> Iterator[Remedy]:
    try:
        check_request(requested_implementation())
    except ops.ImplementationError as error:
        yield Remedy(
            complaint=str(error),
            remedy=f"unset {IMPLEMENTATION_VARIABLE}, or set it to auto",
            fatal=_fails(trials),
        )
        return
    status = ops.implementation_status()
    unmet = [f"{scan.operation} on {scan.device_type}" for scan in status.scans if scan.chosen is None]
    if unmet:
        yield Remedy(
            complaint=f"implementation {status.requested!r} was asked for and cannot run: {', '.join(unmet)}",
            remedy=f"unset {IMPLEMENTATION_VARIABLE}, or set it to auto",
            fatal=_fails(trials),
        )


def _of_pipelines(packages: dict[str, Package]) -> Iterator[Remedy]:
    for name, home in _NAMESAKE_HOMES.items():
        if packages[name].note:
            yield Remedy(
                complaint=f"the installed {name!r} is {packages[name].note}",
                remedy=f"pip uninstall {name}; clone {home} and pip install -e it",
            )
    jsonargparse = installed_version("jsonargparse")
    if packages["kaiko-eva"].version and jsonargparse:
        if version_numbers(jsonargparse) >= version_numbers(_TOO_NEW_JSONARGPARSE_FOR_EVA):
            yield Remedy(
                complaint=f"jsonargparse {jsonargparse} refuses the losses of kaiko-eva's configurations",
                remedy=f"pip install 'jsonargparse<{_TOO_NEW_JSONARGPARSE_FOR_EVA}'",
            )


def _of_weights() -> Iterator[Remedy]:
    from ..models import PUBLISHED_SETS

    if not PUBLISHED_SETS and not os.environ.get(ORGANIZATION_VARIABLE):
        yield Remedy(
            complaint="pretrained=True finds nothing: no weights of this package are published",
            remedy=f"pretrain, export and publish your own, and set {ORGANIZATION_VARIABLE}; or give a file: "
            "timm_mvhybrid.create_model(name, checkpoint_path=...)",
        )


def _of_trials(trials: Sequence[Trial]) -> list[Remedy]:
    remedies = []
    for device in dict.fromkeys(trial.device for trial in trials if not trial.works):
        failed = [trial for trial in trials if trial.device == device and not trial.works]
        remedy = (
            "see what is named above; otherwise report it with the output of 'timm-mvhybrid doctor --json'"
        )
        if device != "cpu":
            remedy = f"run on the CPU, or with {IMPLEMENTATION_VARIABLE}=cpu (plain torch on CUDA); {remedy}"
        remedies.append(
            Remedy(
                complaint=f"on {device}, {', '.join(trial.what for trial in failed)} failed: {failed[0].detail}",
                remedy=remedy,
                fatal=True,
            )
        )
    return remedies


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
