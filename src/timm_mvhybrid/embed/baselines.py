"""What an encoder must beat, as models: colours without shapes, no image at all, and where a patch lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data import PatchSource
from ..runtime.errors import EvaluationError
from .colour_statistics import NAMES, colour_statistics

PREFIX = "baseline:"
COLOUR, MEAN, POSITION = (PREFIX + name for name in ("colour", "mean", "position"))
BASELINES = (COLOUR, MEAN, POSITION)
BLIND = (MEAN, POSITION)
"""Those that see no image: no patch is read for them, and their embeddings are ones."""

_MOST_COLUMNS = 1024
"""Of the positions; beyond it the surfaces of samples become flat, and then level."""


class _Statistics(nn.Module):
    """Looks like a timm model whose features are numbers that are computed of an image without weights."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        # a class token and one more with the same numbers, so that every pooling takes them
        self.global_pool, self.num_prefix_tokens, self.cls_token = "token", 1, True
        # images enter as they are, at any size
        self.pretrained_cfg = {"input_size": (3, 256, 256), "mean": (0.0,) * 3, "std": (1.0,) * 3}

    def forward_features(self, x: Tensor) -> Tensor:
        """Computes the numbers as two equal tokens, (batch, 2, numbers)."""
        return self(x).unsqueeze(1).expand(-1, 2, -1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Takes the token, (batch, numbers)."""
        return x[:, 0]


class ColourBaseline(_Statistics):
    """22 statistics of colour and contrast, see :func:`~timm_mvhybrid.embed.colour_statistics.colour_statistics`.

    No statistic knows a shape: what they predict, staining, cellularity and the share of background tell already.
    """

    def __init__(self) -> None:
        super().__init__(len(NAMES))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the statistics.

        Args:
            x: RGB between 0 and 1, (batch, 3, height, width), each side at least 8 px.

        Returns:
            (batch, 22) float32.
        """
        images = x.float().mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        found = np.stack([colour_statistics(image) for image in images])
        return torch.from_numpy(found).to(x.device)


class MeanBaseline(_Statistics):
    """The same number for every image: what is predicted from it is the mean of what was trained on."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        """Computes ones, (batch, 1) float32, of images (batch, 3, height, width)."""
        return torch.ones(len(x), 1, device=x.device)


class PositionBaseline(_Statistics):
    """Stands for where patches lie; :func:`position_features` take its place where coordinates make sense."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        """Refuses images.

        Raises:
            EvaluationError: Always.
        """
        raise EvaluationError(
            f"{POSITION} is made of coordinates, not of images, and only `evaluate expression` takes it; leave it out"
        )


_MODELS: dict[str, Callable[[], nn.Module]] = {
    COLOUR: ColourBaseline,
    MEAN: MeanBaseline,
    POSITION: PositionBaseline,
}


def baseline_model(name: str) -> nn.Module:
    """Builds a baseline.

    Args:
        name: One of ``BASELINES``.

    Raises:
        EvaluationError: There is none of this name.
    """
    if name not in _MODELS:
        raise EvaluationError(f"unknown baseline '{name}'; choose from {', '.join(BASELINES)}")
    return _MODELS[name]()


def position_features(sources: Mapping[str, PatchSource]) -> dict[str, NDArray[np.float32]]:
    """Computes features of where patches lie, which no image enters.

    Each source has columns of its own, 0 for all others: the terms xⁱyʲ with i + j ≤ 3, of coordinates between −1 and 1
    over the source. A linear model of them fits a smooth surface to each source that it was trained on, and knows nothing
    of others. Where it predicts well, test patches have neighbours in the train part, so that encoders can be right without
    having learned anything of tissue.

    Args:
        sources: Name → patches; without coordinates all lie in one place.

    Returns:
        Name → (patches, columns) float32; of many sources, so that there are about 1,024 columns at most, i + j ≤ 1 or 0.
    """
    terms = _terms(len(sources))
    features = {}
    for number, (name, source) in enumerate(sources.items()):
        places = (
            np.zeros((len(source), 2)) if source.coords is None else np.asarray(source.coords, np.float64)
        )
        low, high = places.min(axis=0), places.max(axis=0)
        x, y = ((places - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-9)).T
        found = np.zeros((len(places), len(sources) * len(terms)), np.float32)
        found[:, number * len(terms) : (number + 1) * len(terms)] = np.stack(
            [x**i * y**j for i, j in terms], axis=1
        )
        features[name] = found
    return features


def _terms(num_sources: int) -> list[tuple[int, int]]:
    for degree in (3, 1, 0):
        terms = [(i, total - i) for total in range(degree + 1) for i in range(total + 1)]
        if num_sources * len(terms) <= _MOST_COLUMNS:
            break
    return terms
