"""A device's name → the device, after it has computed something."""

from __future__ import annotations

import warnings

import torch

from .errors import TimmMVHybridError


class DeviceError(TimmMVHybridError, ValueError):
    """A device cannot be used; the message is one line for the user."""


def find_device(name: str) -> torch.device:
    """Turns a device's name into a device that works here.

    A name may mean nothing, a device that this torch was built without, one that is not there, or one that holds no
    numbers (``meta``). One addition whose result is read back reveals all of these.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or whatever else this torch takes; ``auto`` is the first CUDA
            device, otherwise the CPU.

    Raises:
        DeviceError: If the name means nothing or the device cannot compute; the message names it and devices that can.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # torch warns of names that it will drop; below they work or fail
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise DeviceError(f"unknown device '{name}'; use {_working_devices()}") from error
        try:
            torch.ones(1, device=device).add(1).item()
        # each backend fails in its own way: AssertionError, ModuleNotFoundError, NotImplementedError, RuntimeError
        except Exception as error:
            raise DeviceError(
                f"device '{name}' is not available ({_reason(device, error)}); use {_working_devices()}"
            ) from error
    return device


def _working_devices() -> str:
    names = ["auto", "cpu"]
    if torch.cuda.is_available():
        names.append("cuda")
    if torch.backends.mps.is_available():
        names.append("mps")
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _reason(device: torch.device, error: Exception) -> str:
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return f"{torch.cuda.device_count()} CUDA devices found"
    if device.type == "meta":
        return "it holds shapes and no numbers"
    # torch's explanation has many lines; its first sentence says what is missing
    return " ".join(str(error).split()).split(". ")[0].rstrip(".")[:150]
