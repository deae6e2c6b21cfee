"""The processes that torchrun started, or one alone: their group, who is who, what each says to the others, and who does what."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .errors import TimmMVHybridError

# torch 2.8 closes groups without the interpreter's lock
_CLOSES_WITHOUT_LOCK = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
_PAUSE_S = 0.5
# of gloo and of NCCL
_SIGNS_OF_LOSS = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")


class LostProcessError(TimmMVHybridError, RuntimeError):
    """Another process of a common work is gone."""


def num_ranks(group: Any = None) -> int:
    """Counts the processes of a group, the default one for None; 1 where none was set up."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def own_rank(group: Any = None) -> int:
    """Numbers this process within a group, as for ``num_ranks``."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def process_group(backend: str, timeout: timedelta) -> Iterator[None]:
    """Joins the processes that torchrun started, or opens a group of one, while the block runs.

    Raises:
        LostProcessError: A collective failed because another process was gone.
    """
    if "WORLD_SIZE" in os.environ:
        store, rank, size = _meeting_place(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS_OF_LOSS):
            raise
        raise LostProcessError(
            "another process of this run ended; what it printed says why, and the run can be started again"
        ) from error
    finally:
        close_process_group()


_met: dict[tuple[str, ...], tuple[dist.Store, int, int]] = {}
_num_groups = 0


def _meeting_place(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """Finds where torchrun's processes meet for one more group, which all of them open in the same order.

    Each group gets names of its own there: addresses that an earlier one of these processes left lead nowhere any more, and
    torch would take them.

    Returns:
        Store, rank and number of processes.
    """
    global _num_groups
    key = tuple(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"))
    if key not in _met:
        # kept, because the first process may be the one that serves it
        _met[key] = next(dist.rendezvous("env://", timeout=timeout))
    store, rank, size = _met[key]
    _num_groups += 1
    return dist.PrefixStore(f"timm_mvhybrid/{_num_groups}", store), rank, size


def close_process_group() -> None:
    """Closes every process group of this process.

    Before torch 2.8 that can deadlock: the interpreter's lock is held while gloo's threads are waited for, one of which
    may need it to drop the tensors of the last collective. A pause in which the lock is free lets it do so first.
    """
    if not _CLOSES_WITHOUT_LOCK:
        time.sleep(_PAUSE_S)
    dist.destroy_process_group()


# the slowest rank may embed for days after the fastest is done
_TIMEOUT = timedelta(days=14)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """What a process knows of the processes of its work.

    Attributes:
        rank: Of this process, from 0.
        local_rank: On this machine.
        world_size: Number of processes; 1 without torchrun.
        local_world_size: Number of those on this machine.
        group: Process group on the CPU of the messages below; None for the default one.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    group: Any = None

    @staticmethod
    def from_environment() -> Ranks:
        """Reads torchrun's environment variables."""
        return Ranks(
            rank=int(os.environ.get("RANK", 0)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        )

    @contextmanager
    def joined(self) -> Iterator[Ranks]:
        """Joins the other processes for the block; one alone, and those that are joined already, stay as they are.

        Raises:
            LostProcessError: One of them was lost.
        """
        if self.world_size == 1 or dist.is_initialized():
            yield self
            return
        with process_group("gloo", _TIMEOUT):
            yield self

    @property
    def is_first(self) -> bool:
        """Whether this process does what is done once: computing it, writing it, showing it."""
        return self.rank == 0

    def own_device(self, name: str) -> str:
        """Spreads ``auto`` and ``cuda`` over the machine's devices."""
        if self.world_size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Deals out work, largest first, each to the rank that has least.

        Args:
            sizes: Amount of work of each item; the same list on every rank.
        """
        loads = [0] * self.world_size
        mine = []
        for item in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
            least = loads.index(min(loads))
            # an item costs something even if it is empty, or all empty ones would go to one rank
            loads[least] += max(sizes[item], 1)
            if least == self.rank:
                mine.append(item)
        return sorted(mine)

    def gather(self, value: Any) -> list[Any]:
        """Waits for all processes and collects a small object of each, for each."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def any(self, flag: bool) -> bool:
        """Says whether the flag is up in any process; every process must ask."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        return bool(flags.item())

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Averages numbers over the processes; every process must give the same names in the same order."""
        if self.world_size == 1:
            return values
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(sums, group=self.group)
        return dict(zip(values, (sums / self.world_size).tolist(), strict=True))

    def from_first(self, value: Any) -> Any:
        """Hands the first process's small object to every process.

        Args:
            value: The first process's object; what the others give is ignored.
        """
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def on_first(self, action: Callable[[], _T]) -> _T:
        """Does something on the first process; every process calls it, and where it fails, it fails for all.

        Raises:
            TimmMVHybridError: It failed; of its own class on the first process.
        """
        outcome: tuple[_T | None, str | None] = (None, None)
        failure: TimmMVHybridError | None = None
        if self.is_first:
            try:
                outcome = (action(), None)
            except TimmMVHybridError as error:
                failure, outcome = error, (None, str(error))
        value, problem = self.from_first(outcome)
        if problem is not None:
            raise failure or TimmMVHybridError(problem)
        return value
