"""The processes of a run: environment of torchrun, or nothing → process groups, device and mesh."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..runtime.device import DeviceError, find_device
from ..runtime.errors import PretrainError
from ..runtime.ranks import Ranks, process_group
from .config import ParallelConfig

# a rank may wait for another's slow disk, and must notice one that is gone
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, kw_only=True)
class World(Ranks):
    """What a process knows of the run's processes.

    Attributes:
        device: Where it computes.
        mesh: Mesh over which parameters are sharded; None where they are not.
        checkpoint_group: Group on the CPU of checkpoints alone: a save in the background must not mix its messages
            with the loop's.
    """

    device: torch.device
    mesh: DeviceMesh | None
    checkpoint_group: Any


@contextmanager
def join_world(config: ParallelConfig) -> Iterator[World]:
    """Joins the processes that torchrun started, or makes a world of one.

    Raises:
        PretrainError: There is no CUDA device although one is asked for, or the layout does not fit the processes.
        LostProcessError: One of them was lost.
    """
    ranks = Ranks.from_environment()
    device = _device(config.device, ranks.local_rank)
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = config.tf32
        torch.backends.cudnn.allow_tf32 = config.tf32
    if dist.is_initialized():
        raise PretrainError("a process group is open already; close it before the run starts")
    with process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", _TIMEOUT):
        yield World(
            rank=ranks.rank,
            local_rank=ranks.local_rank,
            world_size=ranks.world_size,
            device=device,
            mesh=_mesh(config, device, ranks.world_size),
            group=dist.new_group(backend="gloo", timeout=_TIMEOUT),
            checkpoint_group=dist.new_group(backend="gloo", timeout=_TIMEOUT),
        )


def can_shard_on_cpu() -> bool:
    """Says whether this torch's FSDP works on a CPU, whose streams it marks with events; torch 2.6's does not."""
    return hasattr(torch.cpu.Stream, "record_event")


def _device(wanted: str, local_rank: int) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise PretrainError(
            "`parallel.device` is cuda, but torch finds no CUDA device; take auto or cpu, or install torch for CUDA"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        return find_device(f"cuda:{local_rank}")
    except DeviceError as error:
        raise PretrainError(
            f"{error}: take `parallel.device='cpu'`, or no more processes than this machine has devices"
        ) from error


def _mesh(config: ParallelConfig, device: torch.device, size: int) -> DeviceMesh | None:
    """Lays the processes out as one row of shards, or as replicated groups of shards."""
    sharding = config.sharding
    if sharding == "auto":
        sharding = "full" if size > 1 else "none"
    if (sharding != "none" or size > 1) and device.type == "cpu" and not can_shard_on_cpu():
        raise PretrainError(
            f"FSDP of torch {torch.__version__} cannot shard on a CPU: update torch, or use one process with "
            "`parallel.sharding='none'`"
        )
    if sharding == "full":
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    if sharding == "none" and size == 1:
        return None
    if sharding == "none":
        # replicas alone: groups of one shard
        shard_size = 1
    else:
        shard_size = config.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if size % shard_size:
        raise PretrainError(
            f"`parallel.shard_size` is {shard_size}, which does not divide the {size} processes; take a divisor"
        )
    return init_device_mesh(
        device.type, (size // shard_size, shard_size), mesh_dim_names=("replicate", "shard")
    )
