"""Samples → batches of crops, step by step: the same for any number of workers and ranks, resumable at any step."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import weakref
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..data import DataError, PatchError, Samples
from ..data.samples import CorruptSample
from ..runtime.cores import num_loader_workers
from ..training.settings import require, require_choice
from .augmentation import Recipe
from .config import CropConfig
from .crops import CropBatch, make_crops, whole_patch
from .photometric import PhotometricOptions
from .sampler import SampleOrder, rank_positions

_MAX_ATTEMPTS = 10


class _StepBatches(Dataset[CropBatch | str]):
    """Step → batch of crops of one rank; or what is wrong, because an exception would lose its type on its way."""

    def __init__(
        self,
        samples: Samples,
        order: SampleOrder,
        crops: CropConfig,
        photometric: PhotometricOptions | None,
        layout: dict[str, int],
        image_size_px: int | None,
    ) -> None:
        self.samples = samples
        self.order = order
        self.crops = crops
        self.photometric = photometric
        self.layout = layout
        self.image_size_px = image_size_px

    def __getitem__(self, step: int) -> CropBatch | str:
        positions = rank_positions(step, **self.layout)
        keys = self.order.keys(positions)
        indices = self.order.samples(positions)
        corrupt: list[CorruptSample] = []
        whole: list[torch.Tensor] = []
        images = self._images(positions, indices, corrupt)
        if self.image_size_px is not None:
            images = _noted(images, whole, self.image_size_px)
        try:
            if self.photometric is None:
                global_crops, local_crops = make_crops(images, keys, self.crops)
            else:
                from .augmentation import make_pil_crops

                global_crops, local_crops = make_pil_crops(images, keys, self.crops, self.photometric)
        except DataError as error:
            return str(error)
        return CropBatch(
            step=step,
            global_crops=global_crops,
            local_crops=local_crops,
            sample_keys=torch.from_numpy(keys),
            indices=torch.from_numpy(indices),
            corrupt=corrupt,
            images=torch.stack(whole) if whole else None,
        )

    def _images(
        self, positions: NDArray[np.int64], indices: NDArray[np.int64], corrupt: list[CorruptSample]
    ) -> Iterator[Image.Image | NDArray[np.uint8]]:
        """Reads the batch's samples; what cannot be read is entered in ``corrupt`` and replaced in ``indices``."""
        for i, position in enumerate(positions.tolist()):
            for attempt in range(1, _MAX_ATTEMPTS + 1):
                index = int(indices[i])
                try:
                    image = self.samples[index]
                except PatchError as error:
                    name = self.samples.name(index)
                    corrupt.append(CorruptSample(index=index, name=name, message=str(error)))
                    indices[i] = self.order.candidate(position, attempt)
                    continue
                yield image
                break
            else:
                raise DataError(
                    f"{corrupt[-1].message}; {_MAX_ATTEMPTS} samples drawn one after the other cannot be read"
                )


def _noted(
    images: Iterator[Image.Image | NDArray[np.uint8]], whole: list[torch.Tensor], size_px: int
) -> Iterator[Image.Image | NDArray[np.uint8]]:
    """Passes images on, and enters each as a whole."""
    for image in images:
        whole.append(whole_patch(image, size_px))
        yield image


class CropLoader:
    """Batches of crops from one step to another; arguments as for ``make_loader``."""

    def __init__(
        self,
        batches: _StepBatches,
        steps: range,
        *,
        num_workers: int,
        prefetch: int,
        pin_memory: bool,
        max_corrupt: int,
    ) -> None:
        self.max_corrupt = max_corrupt
        self.corrupt: dict[int, CorruptSample] = {}
        """Unreadable samples met so far on this rank, by index."""
        self._steps = steps
        workers = num_loader_workers(num_workers, len(steps))
        options: dict[str, Any] = {"prefetch_factor": prefetch} if workers else {}
        self._loader: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            collate_fn=_same,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_the_parent,
            # its own, because a loader draws a number that it does not need from torch's
            generator=torch.Generator(),
            **options,
        )

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self._steps)

    def __iter__(self) -> Generator[CropBatch, None, None]:
        """Yields one batch a step.

        Raises:
            DataError: If more samples are unreadable than is tolerated; the message names the last one.
        """
        with _signals_held_back(), _children_end_with_this_process():
            batches = iter(self._loader)  # starts the workers
        for batch in batches:
            if isinstance(batch, str):
                raise DataError(batch)
            for sample in batch.corrupt:
                self.corrupt.setdefault(sample.index, sample)
                if len(self.corrupt) > self.max_corrupt:
                    raise DataError(
                        f"{sample.message}; {len(self.corrupt)} unreadable samples, and "
                        f"`max_corrupt` allows {self.max_corrupt}: repair or remove them, or raise it"
                    )
            yield batch


def _same(batch: Any) -> Any:
    return batch


# schedulers signal every process of a job; workers that die of it would stop the run before it is saved
_LEFT_TO_THE_PARENT = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
]


def _leave_signals_to_the_parent(_: int) -> None:
    for number in _LEFT_TO_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Holds signals back; processes started meanwhile inherit it and meet none before they ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which has no signals to groups either
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _children_end_with_this_process() -> Iterator[None]:
    """Kills the processes that the block starts before the interpreter waits for them at its end.

    An iterator of torch ends its workers when it is dropped. Where an error's traceback keeps it until the end of the
    interpreter, multiprocessing sends them SIGTERM, which they ignore, and waits for ever.
    """
    before = set(multiprocessing.active_children())
    yield
    started = weakref.WeakSet(set(multiprocessing.active_children()) - before)
    if started:
        atexit.register(_kill, started)


def _kill(children: Iterable[BaseProcess]) -> None:
    alive = [child for child in children if child.is_alive()]
    if alive and hasattr(signal, "SIGCHLD"):
        # torch's handler takes the death of a worker for an accident
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in alive:
        child.kill()


def make_loader(
    samples: Samples,
    *,
    crops: CropConfig,
    batch_size: int,
    num_steps: int,
    seed: int,
    augmentation: Recipe = "paper",
    photometric: PhotometricOptions | None = None,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool = False,
    max_corrupt: int = 0,
    image_size_px: int | None = None,
) -> CropLoader:
    """Makes the batches of one rank, from a step to the end of the run.

    A batch depends on the seed, its step, its rank and the number of ranks, on nothing else: not on workers, not on
    earlier batches, not on torch's random numbers. The images of a step, all ranks together in their order, depend on
    the step and the global batch size only.

    Args:
        samples: What is drawn from.
        crops: Sizes, scales and orientations.
        batch_size: Images of each rank.
        num_steps: Steps of the whole run; with gradient accumulation, backward passes.
        seed: Decides which samples come when, and everything random about them.
        augmentation: "paper" leaves colour and blur to the device, "paper_pil" does them here, by Pillow.
        photometric: Colour and blur, for "paper_pil"; the paper's by default.
        start_step: Step to begin with, when a run is resumed.
        rank: Of this process.
        world_size: Number of ranks.
        num_workers: Processes that read and crop, at most one a core; 0 does so in this one.
        prefetch: Batches that each worker has ready.
        pin_memory: Whether batches go to page-locked memory, for CUDA.
        max_corrupt: Different unreadable samples that this rank tolerates: each is reported in its batch and replaced by
            another one. The next one raises.
        image_size_px: Side in px of the whole patches that batches hold beside their crops; None for crops alone.

    Raises:
        PretrainError: If a number is outside its range.
    """
    for name, value, lowest in (
        ("batch_size", batch_size, 1),
        ("num_steps", num_steps, 0),
        ("num_workers", num_workers, 0),
        ("prefetch", prefetch, 1),
        ("world_size", world_size, 1),
        ("max_corrupt", max_corrupt, 0),
    ):
        require(value >= lowest, name, value, f"at least {lowest}")
    require(0 <= rank < world_size, "rank", rank, f"from 0 to {world_size - 1}")
    wanted = f"from 0 to `num_steps`, which is {num_steps}"
    require(0 <= start_step <= num_steps, "start_step", start_step, wanted)
    require_choice("augmentation", augmentation, Recipe)
    batches = _StepBatches(
        samples,
        SampleOrder(samples.sizes, samples.weights, seed=seed),
        crops,
        None if augmentation == "paper" else photometric or PhotometricOptions(),
        {"batch_size": batch_size, "rank": rank, "world_size": world_size},
        image_size_px,
    )
    return CropLoader(
        batches,
        range(start_step, num_steps),
        num_workers=num_workers,
        prefetch=prefetch,
        pin_memory=pin_memory,
        max_corrupt=max_corrupt,
    )
