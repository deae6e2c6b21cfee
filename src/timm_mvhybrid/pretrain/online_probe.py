"""Teacher + labelled patches → what its features are worth, without a trace in the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data import DataError
from ..data.fitting import fit_image
from ..runtime.errors import PretrainError
from ..ssl.crops import as_pixels
from ..training.measuring import embed_rows, on_first, undisturbed
from .probe_targets import open_targets


class OnlineProbe:
    """Measures a backbone on a labelled set: nearest neighbours for classes, ridge regression for expression.

    On several ranks each embeds a part, with equal numbers of forward passes, and all get the same result.

    Args:
        path: The labelled set, see ``open_targets``.
        image_size_px: Side of the model's input in pixels; images are scaled until they cover it, and cropped.
        mean: Mean of the normalisation, RGB on 0 to 1.
        std: Standard deviation of the normalisation.
        batch_size: Images a forward pass.
        device: Where the model is.
        k: Nearest neighbours that vote.
        num_genes: Genes to predict.
        counts_layer: The layer of each h5ad that holds the counts, or ``raw``; None takes X.

    Raises:
        DataError: The set is incomplete; the message names file, line and remedy.
        EvaluationError: Nothing can be measured on it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_size_px: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        k: int = 20,
        num_genes: int = 50,
        counts_layer: str | None = None,
    ) -> None:
        self.targets = open_targets(path, k=k, num_genes=num_genes, counts_layer=counts_layer)
        self.image_size_px = image_size_px
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device).view(1, 3, 1, 1)

    @property
    def protocol(self) -> str:
        """How the numbers come about, in one line, for the records of the run."""
        return self.targets.protocol

    def __call__(
        self, model: nn.Module, features: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, float]:
        """Embeds the set and measures the embeddings.

        Every rank has to call it. Modes of the modules and the states of random generators are as before afterwards.

        Args:
            model: The module whose modes are to be kept; in evaluation mode during the call.
            features: Normalised images (B, 3, H, W) → (B, D), by the model; None calls the model itself.

        Raises:
            PretrainError: An image cannot be read, or features are not finite.
            TimmMVHybridError: Features cannot be measured; the message says why.
        """
        with undisturbed(model, self.device):
            found = self._embed(features or model)
            return on_first(lambda: self._score(found), self.device)

    def _embed(self, features: Callable[[Tensor], Tensor]) -> Tensor:
        """Embeds the whole set: (N, D) float32 on the CPU, on every rank."""

        def embed(pixels: Tensor) -> dict[str, Tensor]:
            images = pixels.to(self.device).float().div_(255).sub_(self._mean).div_(self._std)
            return {"features": features(images)}

        return embed_rows(len(self.targets), self.batch_size, self._read, embed)["features"]

    def _score(self, features: Tensor) -> dict[str, float]:
        if not torch.isfinite(features).all():
            raise PretrainError(f"{self.targets.path}: the probe's features hold NaN or infinite values")
        return self.targets.score(features.numpy())

    def _read(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Reads images as (B, 3, size, size) uint8; one that cannot be read is black, and named."""
        size = self.image_size_px
        pixels = torch.zeros(len(indices), 3, size, size, dtype=torch.uint8)
        errors = []
        for row, index in enumerate(indices):
            try:
                fitted = fit_image(self.targets[index], (size, size))
                pixels[row] = torch.from_numpy(as_pixels(fitted)).permute(2, 0, 1)
            except DataError as error:
                errors.append(" ".join(str(error).split()))
        return pixels, errors
