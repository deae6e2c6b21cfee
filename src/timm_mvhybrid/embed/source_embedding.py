"""A model on its device, and one source's way through it: batches → rows of an embedding h5, and what the file says of them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from timm.data.config import resolve_data_config
from torch import nn

from ..data import DataError, PatchSource
from ..models.chunks import has_hooks
from ..runtime.errors import EvaluationError
from ..version import __version__
from .backbone import Backbone
from .embedding_store import EmbeddingWriter
from .half_types import DTypeChoice, DTypeName, choose_dtype
from .image_slices import ImageSlices
from .model_input import PatchBatch, choose_device, choose_input_size
from .pooling import Pooling, check_pooling, own_pooling, pooled_features


class DeviceMemoryError(EvaluationError):
    """A batch does not fit into the device's memory; it is the same for every source."""


def _is_out_of_memory(error: RuntimeError) -> bool:
    message = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in message for sign in ("can't allocate memory", "not enough memory", "out of memory")
    )


class PlacedModel:
    """A backbone on a device, and the transform of its images.

    Args:
        backbone: The model; it is moved to the device.
        device: See ``choose_device``.
        pool: How features become one vector.
        dtype: Autocast type, or ``auto``, which each source's first batch decides.
        input_size: Side in px at which patches enter, see ``choose_input_size``.

    Raises:
        EvaluationError: The device cannot be used, or the model does not support the pooling.
        ParameterError: There is no such pooling.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        device: str,
        pool: Pooling,
        dtype: DTypeName | Literal["auto"],
        input_size: int | Literal["auto"],
    ) -> None:
        self.backbone = backbone
        self.device = choose_device(device)
        self.model: nn.Module = backbone.model.to(self.device).eval()
        check_pooling(self.model, pool)
        self.pool = pool
        self.dtype = dtype
        self.input_size = input_size
        # hooks see whole batches, and one at a time
        in_slices = self.device.type == "cpu" and not has_hooks(self.model)
        self._slices = ImageSlices() if in_slices else None
        self.data_config = resolve_data_config({}, model=self.model)
        self._mean, self._std = (
            torch.tensor(self.data_config[key], dtype=torch.float32, device=self.device).view(1, 3, 1, 1)
            for key in ("mean", "std")
        )

    def size_for(self, source: PatchSource) -> tuple[int, int]:
        """Decides at which height and width in px the patches of a source enter.

        Raises:
            EvaluationError: The model does not take the wanted size.
        """
        return choose_input_size(self.model, source.patch_size_px, self.input_size)

    def vectors(self, images: torch.Tensor, choice: DTypeChoice) -> np.ndarray:
        """Embeds a batch, (B, 3, H, W) uint8 → (B, D) float32, under ``torch.inference_mode``.

        Raises:
            DeviceMemoryError: The batch does not fit into memory.
        """
        try:
            if self._slices is not None:
                vectors = self._slices.compute(self._forward, images, partial(choice.context, self.device))
            else:
                # uint8 is transferred and converted on the device: a quarter of the bytes
                on_device = images.to(self.device, non_blocking=True)
                with choice.context(self.device):
                    vectors = self._forward(on_device)
            return vectors.cpu().numpy()
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise DeviceMemoryError(
                f"out of memory on {self.device} with a batch of {len(images)}; "
                f"try `batch_size={max(len(images) // 2, 1)}`"
            ) from error

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        # float32 arithmetic everywhere
        normalised = images.float().div_(255).sub_(self._mean).div_(self._std)
        return pooled_features(self.model, normalised, self.pool).float()


class SourceEmbedding(AbstractContextManager["SourceEmbedding"]):
    """Embeds one source, batch after batch, into a file that appears with ``finish``.

    Leaving the block without it, by whatever exception, leaves no file.

    Args:
        placed: The model.
        source: The patches.
        output: The file to write.
        skip_corrupt: Leave unreadable patches out instead of stopping.
        replace: Whether a file of that name may be replaced.

    Attributes:
        size: Height and width in px at which patches enter the model.
        num_done: Patches so far, unreadable ones included.
        num_corrupt: Those left out.

    Raises:
        EvaluationError: The model does not take the wanted size.
        OutputError: The folder takes no files.
    """

    def __init__(
        self,
        placed: PlacedModel,
        source: PatchSource,
        output: str | Path,
        *,
        skip_corrupt: bool = False,
        replace: bool = True,
    ) -> None:
        self.placed = placed
        self.source = source
        self.size = placed.size_for(source)
        self.skip_corrupt = skip_corrupt
        self.choice = None if placed.dtype == "auto" else DTypeChoice(dtype=placed.dtype)
        self.num_done = self.num_corrupt = 0
        self.embedding_dim = 0
        self._writer = EmbeddingWriter(output, replace=replace, num_rows=len(source))

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Removes what was not finished."""
        self._writer.__exit__(kind, error, traceback)

    @property
    def num_patches(self) -> int:
        """Patches embedded so far."""
        return self.num_done - self.num_corrupt

    def add(self, batch: PatchBatch) -> None:
        """Embeds the next batch, in the source's order.

        Raises:
            DataError: A patch cannot be read, and may not be left out.
            EvaluationError: An embedding is NaN or infinite, or memory runs out.
            OutputError: The disk does not take it.
        """
        if batch.errors and not self.skip_corrupt:
            raise DataError(f"{batch.errors[0][1]}; leave unreadable patches out with `skip_corrupt=True`")
        if batch.indices:
            compute = partial(self.placed.vectors, batch.images)
            self.choice = self.choice or choose_dtype(self.placed.device, compute)
            vectors = compute(self.choice)
            finite = np.isfinite(vectors).all(axis=1)
            if not finite.all():
                first = self.source.name(batch.indices[int(finite.argmin())])
                remedy = "check the weights" if self.choice.dtype == "float32" else "try `dtype='float32'`"
                raise EvaluationError(f"{first}: the embedding holds NaN or infinite values; {remedy}")
            self._writer.append(vectors, batch.indices)
        self.num_done += len(batch.indices) + len(batch.errors)
        self.num_corrupt += len(batch.errors)

    def finish(self, **attributes: Any) -> DTypeChoice:
        """Writes what is known of the patches and of how they were embedded, and gives the file its name.

        Args:
            **attributes: What else the file says of itself.

        Returns:
            The type in which the model computed.

        Raises:
            DataError: No patch could be read.
            OutputError: The disk does not take the file.
        """
        source, config, pool = self.source, self.placed.data_config, self.placed.pool
        if self.choice is None or self.num_patches == 0:
            raise DataError(f"{source.path}: none of its {self.num_corrupt} patches can be read")
        self.embedding_dim = self._writer.embedding_dim
        backbone, size = self.placed.backbone, self.size
        # only sources of which the slide's level 0 is known
        slide = getattr(source, "slide", None)
        self._writer.describe(
            source,
            {
                "model": backbone.name,
                "weights": backbone.weights,
                "weights_sha256": backbone.weights_sha256,
                "resolution_um_per_px": source.resolution_um_per_px,
                "patch_size_px": source.patch_size_px,
                "patch_size_level0": getattr(source, "patch_size_level0", None),
                "slide": None if slide is None else slide.path.name,
                "slide_dimensions_px": None if slide is None else slide.dimensions,
                "input_size_px": size[0] if size[0] == size[1] else size,
                "global_pool": f"model ({own_pooling(self.placed.model)})" if pool == "model" else pool,
                "dtype": self.choice.dtype,
                "dtype_reason": self.choice.reason,
                "mean": config["mean"],
                "std": config["std"],
                "timm_mvhybrid_version": __version__,
                "timm_version": timm.__version__,
                "torch_version": str(torch.__version__),
                "source": source.path.resolve().name,
                "num_corrupt": self.num_corrupt,
                # only coordinate files have them; other sources hold whole patches
                "num_over_edge": getattr(source, "num_over_edge", None),
                "edge": getattr(source, "edge", None),
                **attributes,
            },
        )
        self._writer.finish()
        return self.choice
