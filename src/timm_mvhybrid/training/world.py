"""The processes of a run: environment of torchrun, or nothing → process groups, device and mesh."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..runtime.device import DeviceError, find_device
from ..runtime.errors import PretrainError, TimmMVHybridError
from ..runtime.process_group import LOST, close_process_group, is_loss
from .config import ParallelConfig

# a rank may wait for another's slow disk, and must notice one that is gone
_TIMEOUT = timedelta(minutes=30)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class World:
    """What a process knows of the run's processes.

    Args:
        rank: Its number, from 0.
        size: Number of processes.
        device: Where it computes.
        mesh: Mesh over which parameters are sharded; None where they are not.
        control_group: Group on the CPU for small messages of the loop.
        checkpoint_group: Group on the CPU of checkpoints alone: a save in the background must not mix its messages
            with the loop's.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None
    control_group: Any
    checkpoint_group: Any

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and shows progress."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Says whether the flag is up in any process; every process must ask.

        Args:
            flag: This process's flag.
        """
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control_group)
        return bool(flags.item())

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Averages numbers over the processes; every process must give the same names in the same order.

        Args:
            values: This process's numbers.
        """
        if self.size == 1:
            return values
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(sums, group=self.control_group)
        return dict(zip(values, (sums / self.size).tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Collects a small object of every process, in their order, for every process.

        Args:
            value: This process's object.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control_group)
        return values

    def from_main(self, value: Any) -> Any:
        """Hands the main process's small object to every process.

        Args:
            value: The main process's object; what the others give is ignored.
        """
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control_group)
        return values[0]

    def on_main(self, action: Callable[[], _T]) -> _T:
        """Does something on the main process; every process calls it, and where it fails, it fails for all.

        Args:
            action: What to do.

        Returns:
            What it returned, a small object, in every process.

        Raises:
            TimmMVHybridError: It failed; of its own class on the main process.
        """
        outcome: tuple[_T | None, str | None] = (None, None)
        failure: TimmMVHybridError | None = None
        if self.is_main:
            try:
                outcome = (action(), None)
            except TimmMVHybridError as error:
                failure, outcome = error, (None, str(error))
        value, problem = self.from_main(outcome)
        if problem is not None:
            raise failure or PretrainError(problem)
        return value


@contextmanager
def join_world(config: ParallelConfig) -> Iterator[World]:
    """Joins the processes that torchrun started, or makes a world of one.

    Args:
        config: Device and layout.

    Yields:
        The world; its groups are closed afterwards.

    Raises:
        PretrainError: There is no CUDA device although one is asked for, the layout does not fit the processes, or one
            of them was lost.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = _device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = config.tf32
        torch.backends.cudnn.allow_tf32 = config.tf32
    if dist.is_initialized():
        raise PretrainError("a process group is open already; close it before the run starts")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=_TIMEOUT)
    try:
        yield World(
            rank=rank,
            size=size,
            device=device,
            mesh=_mesh(config, device, size),
            control_group=dist.new_group(backend="gloo", timeout=_TIMEOUT),
            checkpoint_group=dist.new_group(backend="gloo", timeout=_TIMEOUT),
        )
    except RuntimeError as error:
        if not is_loss(error):
            raise
        raise PretrainError(LOST) from error
    finally:
        close_process_group()


def can_shard_on_cpu() -> bool:
    """Says whether this torch's FSDP works on a CPU, whose streams it marks with events; torch 2.6's does not."""
    return hasattr(torch.cpu.Stream, "record_event")


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise PretrainError(
            "parallel.device is cuda, but torch finds no CUDA device; take auto or cpu, or install torch for CUDA"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        return find_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    except DeviceError as error:
        raise PretrainError(
            f"{error}: parallel.device cpu, or no more processes (--nproc-per-node) than this machine has devices"
        ) from error


def _mesh(config: ParallelConfig, device: torch.device, size: int) -> DeviceMesh | None:
    """Lays the processes out as one row of shards, or as replicated groups of shards."""
    sharding = config.sharding
    if sharding == "auto":
        sharding = "full" if size > 1 else "none"
    if (sharding != "none" or size > 1) and device.type == "cpu" and not can_shard_on_cpu():
        raise PretrainError(
            f"FSDP of torch {torch.__version__} cannot shard on a CPU: update torch, or use one process with "
            "parallel.sharding none"
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
            f"parallel.shard_size is {shard_size}, which does not divide the {size} processes; take a divisor"
        )
    return init_device_mesh(
        device.type, (size // shard_size, shard_size), mesh_dim_names=("replicate", "shard")
    )
