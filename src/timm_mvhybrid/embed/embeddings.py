"""Patches + model → embedding h5: the loop, its checks, and what the file records."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import arg

from ..data import PatchSource
from ..runtime.atomic_file import claimed
from ..runtime.errors import ParameterError
from .backbone import Backbone
from .embedding_store import check_output
from .half_types import DTypeName
from .model_input import PatchLoader, num_available_workers
from .pooling import Pooling
from .source_embedding import PlacedModel, SourceEmbedding


@dataclass(frozen=True, kw_only=True)
class ForwardOptions:
    """How patches go through a model.

    Attributes:
        batch_size: Patches per batch.
        device: auto (CUDA if there is any, otherwise CPU; ranks are spread over the devices), cpu, cuda, cuda:1, mps.
        dtype: Autocast type; embeddings are stored as float32. auto, of ``embed`` alone, takes bfloat16 where the processor
            multiplies it fast and the first batch agrees with float32 to a cosine of 0.9999, and says so.
        num_workers: Processes that read patches, at most one a core; 0 reads in the main process, auto takes one a core
            up to 8.
        pool: How features become one vector; model is what the model does by itself.
        input_size: Side in px at which patches enter the model; auto keeps their own where the model takes it.
    """

    batch_size: Annotated[int, arg(metavar="N")] = 64
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    dtype: DTypeName | Literal["auto"] = "float32"
    num_workers: Annotated[Literal["auto"] | int, arg(metavar="auto|N")] = 0
    pool: Annotated[Pooling, arg(name="global-pool")] = "model"
    input_size: Annotated[Literal["auto"] | int, arg(metavar="auto|PX")] = "auto"

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of `embed` that these are."""
        num_workers = num_available_workers() if self.num_workers == "auto" else self.num_workers
        names = ("batch_size", "device", "dtype", "pool", "input_size")
        return {"num_workers": num_workers, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """Progress of an embedding run after a batch.

    Attributes:
        num_done: Patches read so far, unreadable ones included.
        num_total: Patches of the source.
        seconds: Time since the first batch was asked for.
        data_wait_seconds: The part of it spent waiting for patches.
        errors: One line for each patch of this batch that was left out.
    """

    num_done: int
    num_total: int
    seconds: float
    data_wait_seconds: float
    errors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EmbeddingSummary:
    """Summary of an embedding run.

    Attributes:
        output: The file written.
        num_patches: Rows in it.
        embedding_dim: Columns in it.
        input_size_px: Height and width of the model's input in pixels.
        seconds: Time of the run, loading of the model excluded.
        patches_per_second: Rows per second.
        data_wait_share: Fraction of the time (0 to 1) spent waiting for patches.
        num_corrupt: Patches left out because they could not be read.
        num_over_edge: Patches that extend over the slide's edge; None where the source does not say.
        edge: How they were filled beyond it: ``black`` or ``white``, or ``skip``, left out; None where the source does not say.
        dtype: Type in which the model computed.
        dtype_reason: Why, where the choice was left open.
    """

    output: str
    num_patches: int
    embedding_dim: int
    input_size_px: tuple[int, int]
    seconds: float
    patches_per_second: float
    data_wait_share: float
    num_corrupt: int
    num_over_edge: int | None = None
    edge: str | None = None
    dtype: DTypeName = "float32"
    dtype_reason: str | None = None


def embed(
    source: PatchSource,
    backbone: Backbone,
    output: str | Path,
    *,
    batch_size: int = 64,
    device: str = "auto",
    dtype: DTypeName | Literal["auto"] = "float32",
    num_workers: int = 0,
    pool: Pooling = "model",
    input_size: int | Literal["auto"] = "auto",
    skip_corrupt: bool = False,
    overwrite: bool = False,
    on_batch: Callable[[BatchReport], None] | None = None,
) -> EmbeddingSummary:
    """Embeds every patch of a source and writes one h5 file, complete or not at all.

    The file holds ``embeddings`` (N, D) float32 and, where known, ``coords`` (N, 2) int64, ``barcodes`` (N, 1) and
    ``paths`` (N,), all in the source's order; its attributes say from which weights and how they were made.

    Args:
        source: The patches.
        backbone: Any timm model and what its weights are.
        output: The file to write.
        batch_size: Patches per batch.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        dtype: Autocast type on the device; float32 computes without autocast; auto takes bfloat16 where the device is fast
            at it and the first batch agrees with float32, see ``choose_dtype``. Embeddings are stored as float32.
        num_workers: Processes that read patches; 0 reads in this one.
        pool: How features become one vector, see ``pooled_features``.
        input_size: Side in pixels at which patches enter the model, see ``choose_input_size``.
        skip_corrupt: Leave unreadable patches out instead of stopping.
        overwrite: Replace an existing output.
        on_batch: Called after every batch.

    Returns:
        What was done.

    Raises:
        ParameterError: `batch_size` or `num_workers` is out of range.
        DataError: If a patch cannot be read (with ``skip_corrupt``: if none can).
        EvaluationError: If the output may not be written, the model cannot do what is asked, memory runs out, or an
            embedding is NaN or infinite.
        OutputError: If the disk does not take the output, or another process writes it.
    """
    check_output(output, overwrite=overwrite, source=source.path)
    with claimed(output):
        return write_embeddings(
            source,
            backbone,
            output,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            num_workers=num_workers,
            pool=pool,
            input_size=input_size,
            skip_corrupt=skip_corrupt,
            replace=overwrite,
            on_batch=on_batch,
        )


def write_embeddings(
    source: PatchSource,
    backbone: Backbone,
    output: str | Path,
    *,
    batch_size: int,
    device: str,
    dtype: DTypeName | Literal["auto"],
    num_workers: int,
    pool: Pooling,
    input_size: int | Literal["auto"],
    skip_corrupt: bool = False,
    replace: bool = True,
    on_batch: Callable[[BatchReport], None] | None = None,
) -> EmbeddingSummary:
    """Embeds as ``embed`` does, to an output that was checked and that others may write as well.

    Raises:
        DataError: As ``embed``.
        EvaluationError: As ``embed``.
        OutputError: If the disk does not take the output.
    """
    if batch_size < 1 or num_workers < 0:
        raise ParameterError(
            f"`batch_size` must be at least 1 and `num_workers` at least 0, not {batch_size} and {num_workers}"
        )
    placed = PlacedModel(backbone, device=device, pool=pool, dtype=dtype, input_size=input_size)
    batches = PatchLoader(
        source,
        placed.size_for(source),
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=placed.device.type == "cuda",
    )
    start = time.perf_counter()
    with (
        SourceEmbedding(placed, source, output, skip_corrupt=skip_corrupt, replace=replace) as embedding,
        torch.inference_mode(),
    ):
        for batch in batches:
            embedding.add(batch)
            if on_batch is not None:
                on_batch(
                    BatchReport(
                        num_done=embedding.num_done,
                        num_total=len(source),
                        seconds=time.perf_counter() - start,
                        data_wait_seconds=batches.seconds_waited,
                        errors=tuple(message for _, message in batch.errors),
                    )
                )
        choice = embedding.finish()
    seconds = time.perf_counter() - start
    return EmbeddingSummary(
        output=str(output),
        num_patches=embedding.num_patches,
        embedding_dim=embedding.embedding_dim,
        input_size_px=embedding.size,
        seconds=seconds,
        patches_per_second=embedding.num_patches / seconds,
        data_wait_share=min(batches.seconds_waited / seconds, 1.0),
        num_corrupt=embedding.num_corrupt,
        num_over_edge=getattr(source, "num_over_edge", None),
        edge=getattr(source, "edge", None),
        dtype=choice.dtype,
        dtype_reason=choice.reason,
    )
