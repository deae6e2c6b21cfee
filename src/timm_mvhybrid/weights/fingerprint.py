"""Features of one fixed image → a fingerprint by which a loaded model proves that it computes what was exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

# smallest tolerances: on CPUs 15 times the largest rounding measured on the six models; elsewhere enough for TF32
CPU_TOLERANCE = 1e-4
OTHER_TOLERANCE = 1e-2
# weights that amplify rounding get this many times the rounding that they show themselves
_ROUNDINGS = 20
_CHANNELS = 3
_DIGITS = 7


def synthetic_image(height: int, width: int) -> Tensor:
    """Draws the fixed image: chirps in both directions, different in each channel, from integers alone.

    Args:
        height: Height in px.
        width: Width in px.

    Returns:
        The image, (1, 3, height, width) float32 in -1 … 1, bit-equal on every machine.
    """
    with torch.device("cpu"):
        row = torch.arange(height, dtype=torch.int64).view(1, -1, 1)
        column = torch.arange(width, dtype=torch.int64).view(1, 1, -1)
        channel = torch.arange(_CHANNELS, dtype=torch.int64).view(-1, 1, 1)
        values = (3 * row * row + column * column + (5 + channel) * row * column + 67 * channel) % 251
        return (values.to(torch.float32) / 125 - 1).unsqueeze(0)


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The features that a model computes of the synthetic image.

    Attributes:
        size_px: Height and width of the image.
        patch_px: Height and width of the model's patches.
        features: Class token, where there is one, and mean of the patch tokens, after the final norm.
        dtype: The type they were computed in, float32.
        cpu_tolerance: Norm of the difference, in units of the features' norm, up to which features that a CPU computed
            count as the same.
        other_tolerance: The same for other devices.
    """

    size_px: tuple[int, int]
    patch_px: tuple[int, int]
    features: tuple[float, ...]
    dtype: str = "float32"
    cpu_tolerance: float = CPU_TOLERANCE
    other_tolerance: float = OTHER_TOLERANCE

    @classmethod
    def of(cls, model: nn.Module) -> Fingerprint:
        """Takes a model's fingerprint, and from its features in float64 how much rounding to tolerate.

        Args:
            model: A VisionTransformer with float32 parameters and three input channels.
        """
        size, patch = _geometry(model)
        features = _features(model, size)
        exact = _features(deepcopy(model).double(), size)
        rounding = float((features - exact).norm() / exact.norm())
        return cls(
            size_px=size,
            patch_px=patch,
            features=tuple(float(f"{value:.{_DIGITS}g}") for value in features.tolist()),
            cpu_tolerance=max(CPU_TOLERANCE, _ROUNDINGS * rounding),
            other_tolerance=max(OTHER_TOLERANCE, _ROUNDINGS * rounding),
        )

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """Reads what ``to_json`` wrote.

        Raises:
            ValueError: It is not a fingerprint.
        """
        try:
            values = json.loads(text)
            return cls(
                size_px=(int(values["size_px"][0]), int(values["size_px"][1])),
                patch_px=(int(values["patch_px"][0]), int(values["patch_px"][1])),
                features=tuple(float(value) for value in values["features"]),
                dtype=str(values["dtype"]),
                cpu_tolerance=float(values["cpu_tolerance"]),
                other_tolerance=float(values["other_tolerance"]),
            )
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise ValueError(f"not a fingerprint ({error})") from error

    def to_json(self) -> str:
        """Writes the fingerprint as JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def applies_to(self, model: nn.Module) -> bool:
        """Says whether the model, as it was built, must reproduce the fingerprint.

        It need not do so on the meta device, in half precision, with other than three input channels, or at another
        image or patch size, where position embedding and patch projection are resampled.
        """
        parameters = list(model.parameters())
        real = all(
            type(parameter.data) is Tensor
            and parameter.device.type != "meta"
            and parameter.dtype in (torch.float32, torch.float64)
            for parameter in parameters
        )
        patch_embed: Any = model.patch_embed
        return (
            bool(parameters)
            and real
            and patch_embed.proj.in_channels == _CHANNELS
            and _geometry(model)
            == (
                self.size_px,
                self.patch_px,
            )
        )

    def tolerance(self, model: nn.Module) -> float:
        """Says which error is allowed on the model's device."""
        on_cpu = next(model.parameters()).device.type == "cpu"
        return self.cpu_tolerance if on_cpu else self.other_tolerance

    def error(self, model: nn.Module) -> float:
        """Compares a model with the fingerprint.

        Returns:
            Norm of the difference of the features in units of the fingerprint's norm; infinite where that is not a
            number.
        """
        expected = torch.tensor(self.features, dtype=torch.float64)
        found = _features(model, self.size_px)
        if found.shape != expected.shape:
            return float("inf")
        error = float((found - expected).norm() / expected.norm())
        return error if error == error else float("inf")


def relative_error(model: nn.Module, reference: nn.Module) -> float:
    """Compares two models on the synthetic image.

    Returns:
        Norm of the difference of their features in units of the reference's norm.
    """
    size, _ = _geometry(reference)
    expected = _features(reference, size)
    return float((_features(model, size) - expected).norm() / expected.norm())


def _geometry(model: nn.Module) -> tuple[tuple[int, int], tuple[int, int]]:
    """Reads image and patch size, in px."""
    patch_embed: Any = model.patch_embed
    height, width = patch_embed.img_size
    rows, columns = patch_embed.patch_size
    return (int(height), int(width)), (int(rows), int(columns))


def _features(model: Any, size: tuple[int, int]) -> Tensor:
    """Computes class token and mean patch token of the synthetic image, (n,) float64 on the CPU."""
    parameter = next(model.parameters())
    image = synthetic_image(*size).to(device=parameter.device, dtype=parameter.dtype)
    # not inference mode: constants that layers cache in it could not be used in training later
    with _evaluation(model), torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        tokens = model.forward_features(image)[0].to(device="cpu", dtype=torch.float64)
    num_prefix = model.num_prefix_tokens
    first = tokens[:1] if num_prefix else tokens[:0]
    return torch.cat([first, tokens[num_prefix:].mean(dim=0, keepdim=True)]).flatten()


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and each of its modules back into its own."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
