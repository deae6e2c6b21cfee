"""Each device of this machine → do the scans and the backbones work on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor

from .. import ops

# one for each scan and mixer
_MODELS = ("test_mvhybrid", "test_hydra_hybrid", "test_vim_einfft", "test_vit12")
# relative difference of CUDA from the CPU that TF32 and another order of sums explain
_TOLERANCE = 2e-2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of one small computation.

    Attributes:
        device: ``cpu``, or ``cuda:0`` and so on.
        what: What was computed.
        works: Whether it gave the right numbers.
        detail: What it gave, or why it failed.
    """

    device: str
    what: str
    works: bool
    detail: str


def try_devices() -> tuple[Trial, ...]:
    """Runs the scans and a tiny backbone of each kind on the CPU, and on every CUDA device in comparison."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    computations: dict[str, Callable[[str], Tensor]] = {
        "selective_scan": _selective_scan,
        "ssd_scan": _ssd_scan,
        "complex_scan": _complex_scan,
        **{name: _forward(name) for name in _MODELS},
        "test_mvhybrid, bfloat16 autocast": _forward("test_mvhybrid", autocast=True),
    }
    trials = []
    for what, compute in computations.items():
        expected: Tensor | None = None
        for device in devices:
            trial, result = _try(what, compute, device, expected)
            trials.append(trial)
            expected = result if device == "cpu" else expected
    return tuple(sorted(trials, key=lambda trial: devices.index(trial.device)))


def _try(
    what: str, compute: Callable[[str], Tensor], device: str, expected: Tensor | None
) -> tuple[Trial, Tensor | None]:
    """Runs one computation on one device and judges the result."""

    def trial(works: bool, detail: str) -> Trial:
        return Trial(device=device, what=what, works=works, detail=detail)

    try:
        with torch.inference_mode():
            result = compute(device).detach().cpu()
    except Exception as error:  # whatever it is, it is the finding
        return trial(False, f"{type(error).__name__}: {str(error).strip() or 'no message'}"), None
    if result.dtype != torch.float32:
        return trial(False, f"gives {result.dtype}, not torch.float32"), None
    if not bool(torch.isfinite(result).all()):
        return trial(False, "gives NaN or Inf"), None
    if device == "cpu":
        return trial(True, "finite"), result
    if expected is None:
        return trial(True, "finite; nothing to compare with, because the CPU failed"), result
    difference = float((result - expected).norm() / expected.norm())
    return trial(difference < _TOLERANCE, f"differs from the CPU by {difference:.1e}"), result


def _draw(*shape: int) -> Tensor:
    """Draws the same numbers each time, and leaves the global generator alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _selective_scan(device: str) -> Tensor:
    u, B = _draw(2, 8, 17).to(device), _draw(2, 4, 17).to(device)
    A = -_draw(8, 4).exp().to(device)
    return ops.selective_scan(u, u, A, B, B, delta_softplus=True)


def _ssd_scan(device: str) -> Tensor:
    x, B = _draw(2, 17, 2, 8).to(device), _draw(2, 17, 1, 4).to(device)
    delta = _draw(2, 17, 2).exp().to(device)
    result: Any = ops.ssd_scan(x, delta, -_draw(2).exp().to(device), B, B)
    return result[0] if isinstance(result, tuple) else result


def _complex_scan(device: str) -> Tensor:
    u, B = _draw(2, 17, 8).to(device), _draw(2, 17, 1, 4).to(device)
    w = _draw(8, 2).to(device)
    return ops.complex_scan(u, u, -w.exp(), w, B, B, None, None)


def _forward(name: str, *, autocast: bool = False) -> Callable[[str], Tensor]:
    """Makes the computation of a tiny backbone's features."""

    def compute(device: str) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(name).eval().to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
            features: Tensor = model(_draw(2, 3, 64, 64).to(device))
        return features

    return compute
