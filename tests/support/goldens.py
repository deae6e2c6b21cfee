"""Reads reference numbers, and says how near a result comes to them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open

FOLDER = Path(__file__).parent.parent / "golden" / "models"


@dataclass
class Golden:
    """The content of one file; see tests/golden/models/README.md."""

    config: dict
    params: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)
    cotangents: dict = field(default_factory=dict)
    outputs: dict = field(default_factory=dict)
    outputs_f32: dict = field(default_factory=dict)
    grads: dict = field(default_factory=dict)
    grads_f32: dict = field(default_factory=dict)


def load_golden(name):
    groups = {
        "param": "params",
        "input": "inputs",
        "cotangent": "cotangents",
        "output": "outputs",
        "output_f32": "outputs_f32",
        "grad": "grads",
        "grad_f32": "grads_f32",
    }
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        golden = Golden(json.loads(file.metadata()["config"]))
        for key in file.keys():
            group, _, rest = key.partition(".")
            getattr(golden, groups[group])[rest] = file.get_tensor(key)
    return golden


def relative_error(actual, expected):
    """Largest deviation in units of the largest expected number; infinite where the result is not finite.

    Where all expected numbers are zero, as a gradient by A after a single step, only zero comes near.
    """
    assert actual.shape == expected.shape
    deviation = (actual.double() - expected.double()).abs().max().item()
    if deviation == 0:
        return 0.0
    error = deviation / max(expected.double().abs().max().item(), 1e-300)
    return error if error == error else float("inf")
