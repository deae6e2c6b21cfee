"""Teacher + labelled patches → what its features are worth, without a trace in the training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data import DataError
from ..data.fitting import fit_image
from ..runtime.errors import PretrainError, TimmMVHybridError
from ..ssl.crops import as_pixels
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
            embedded = self._embed(features or model)
            result: list[dict[str, float] | TimmMVHybridError] = [{}]
            if _rank() == 0:
                try:
                    result = [self._score(embedded)]
                except TimmMVHybridError as error:
                    result = [error]
            if _world_size() > 1:
                dist.broadcast_object_list(result, src=0, device=self.device)
        if isinstance(result[0], TimmMVHybridError):
            raise result[0]
        return result[0]

    def _score(self, features: Tensor) -> dict[str, float]:
        if not torch.isfinite(features).all():
            raise PretrainError(f"{self.targets.path}: the probe's features hold NaN or infinite values")
        return self.targets.score(features.numpy())

    def _embed(self, features: Callable[[Tensor], Tensor]) -> Tensor:
        """Embeds the whole set on all ranks together: (N, D) float32 on the CPU, on every rank."""
        total, world_size = len(self.targets), _world_size()
        num_own = -(-total // world_size)
        # where the ranks' parts are uneven, the last image is embedded again: under FSDP all have to call the model
        # equally often
        own = [min(index, total - 1) for index in range(_rank(), num_own * world_size, world_size)]
        batches = [own[start : start + self.batch_size] for start in range(0, num_own, self.batch_size)]
        embedded: list[Tensor] = []
        unreadable: list[str] = []
        with ThreadPoolExecutor(max_workers=1) as reader:
            waiting = reader.submit(self._read, batches[0])
            for following in (*batches[1:], None):
                pixels, errors = waiting.result()
                if following is not None:
                    waiting = reader.submit(self._read, following)
                unreadable += errors
                images = pixels.to(self.device).float().div_(255).sub_(self._mean).div_(self._std)
                embedded.append(features(images).detach().float())
        own_features = torch.cat(embedded)
        if world_size == 1:
            parts, messages = [own_features], [unreadable]
        else:
            parts = [torch.empty_like(own_features) for _ in range(world_size)]
            dist.all_gather(parts, own_features.contiguous())
            messages = [[] for _ in range(world_size)]
            dist.all_gather_object(messages, unreadable)
        first = next((message for errors in messages for message in errors), None)
        if first is not None:
            raise PretrainError(
                f"the probe cannot read an image: {first}; repair it, or take it out of the set"
            )
        return torch.stack(parts, dim=1).flatten(0, 1)[:total].cpu()

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


@contextmanager
def undisturbed(model: nn.Module, device: torch.device | str = "cpu") -> Iterator[None]:
    """Evaluates a model in the middle of its training: without gradients, and with everything put back afterwards.

    Args:
        model: Its modules are in evaluation mode within, and in the modes that they had afterwards.
        device: Whose random generator is kept, beside those of the CPU, NumPy and Python.
    """
    modes = [(module, module.training) for module in model.modules()]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    device = torch.device(device)
    cuda = (
        []
        if device.type != "cuda"
        else [torch.cuda.current_device() if device.index is None else device.index]
    )
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0


def _world_size() -> int:
    return dist.get_world_size() if _distributed() else 1
