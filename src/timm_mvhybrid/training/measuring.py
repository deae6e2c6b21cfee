"""A model in the middle of its training + labelled images → its features of them, without a trace in the training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..runtime.errors import PretrainError, TimmMVHybridError
from ..runtime.ranks import num_ranks, own_rank
from ..runtime.read_ahead import read_ahead
from .config import ParallelConfig
from .parallelize import DTYPES
from .world import World

T = TypeVar("T")


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


def sharded_type(world: World, config: ParallelConfig) -> torch.autocast:
    """Computes in the type of training where weights are sharded: they are gathered in it, and take no other input.

    Args:
        world: The processes; where nothing is sharded, weights are float32 and so is what is measured.
        config: How the run is laid out.
    """
    half = world.mesh is not None and config.precision != "fp32"
    return torch.autocast(world.device.type, DTYPES[config.precision] if half else None, enabled=half)


def embed_rows(
    num_rows: int,
    batch_size: int,
    read: Callable[[Sequence[int]], tuple[Any, list[str]]],
    embed: Callable[[Any], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Embeds a set on all processes together, each a part of it; every process calls it.

    Args:
        num_rows: Size of the set, at least 1.
        batch_size: Rows of a forward pass.
        read: Numbers of rows → what ``embed`` takes, and a message for each row that cannot be read; it runs beside
            ``embed``, in a thread.
        embed: A batch → tensors by name, of which the first dimension are the rows.

    Returns:
        The tensors of all rows in their order, float32 on the CPU, the same on every process.

    Raises:
        PretrainError: A row cannot be read.
    """
    world_size = num_ranks()
    num_own = -(-num_rows // world_size)
    # where the ranks' parts are uneven, the last image is embedded again: under FSDP all have to call the model
    # equally often
    own = [min(index, num_rows - 1) for index in range(own_rank(), num_own * world_size, world_size)]
    batches = [own[start : start + batch_size] for start in range(0, num_own, batch_size)]
    embedded: dict[str, list[Tensor]] = {}
    unreadable: list[str] = []
    for batch, errors in read_ahead(map(read, batches)):
        unreadable += errors
        for name, value in embed(batch).items():
            embedded.setdefault(name, []).append(value.detach().float())
    messages = [unreadable]
    if world_size > 1:
        messages = [[] for _ in range(world_size)]
        dist.all_gather_object(messages, unreadable)
    first = next((message for errors in messages for message in errors), None)
    if first is not None:
        raise PretrainError(f"the probe cannot read an image: {first}; repair it, or take it out of the set")
    return {name: _gather(torch.cat(parts))[:num_rows].cpu() for name, parts in embedded.items()}


def on_first(measure: Callable[[], T], device: torch.device) -> T:
    """Computes something on the first process and tells the others; every process calls it.

    Raises:
        TimmMVHybridError: Of the first process, on all of them.
    """
    result: list[Any] = [None]
    if own_rank() == 0:
        try:
            result = [measure()]
        except TimmMVHybridError as error:
            result = [error]
    if num_ranks() > 1:
        dist.broadcast_object_list(result, src=0, device=device)
    if isinstance(result[0], TimmMVHybridError):
        raise result[0]
    found: T = result[0]
    return found


def _gather(own: Tensor) -> Tensor:
    """Puts the rows of all processes in turn."""
    world_size = num_ranks()
    if world_size == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(world_size)]
    dist.all_gather(parts, own.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)
