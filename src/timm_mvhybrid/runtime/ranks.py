"""The processes that torchrun started, or one alone: who is who, what each says to the others, and who does what."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .errors import TimmMVHybridError
from .process_group import process_group

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
        group: Process group on the CPU of the messages below; None for the default one.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    group: Any = None

    @staticmethod
    def from_environment() -> Ranks:
        """Reads torchrun's environment variables."""
        return Ranks(
            rank=int(os.environ.get("RANK", 0)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
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
