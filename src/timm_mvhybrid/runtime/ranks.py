"""torchrun's ranks → each rank's share of the files, and a wait until all are written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch.distributed as dist

from .errors import EvaluationError
from .process_group import LOST, close_process_group, is_loss

# the slowest rank may embed for days after the fastest is done
_TIMEOUT = timedelta(days=14)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes that torchrun started, as a context manager around their common work.

    Args:
        rank: Of this process.
        local_rank: On this machine.
        world_size: Number of processes; 1 without torchrun.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @staticmethod
    def from_environment() -> Ranks:
        """Reads torchrun's environment variables.

        Returns:
            The ranks; a single one without torchrun.
        """
        return Ranks(
            rank=int(os.environ.get("RANK", 0)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
        )

    def __enter__(self) -> Ranks:
        """Joins the other processes."""
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_TIMEOUT)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leaves them.

        Raises:
            EvaluationError: One of them was lost.
        """
        if self.world_size > 1 and dist.is_initialized():
            close_process_group()
        if error is not None and is_loss(error):
            raise EvaluationError(LOST) from error

    @property
    def is_first(self) -> bool:
        """Whether this process computes and writes what is computed once."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Spreads `auto` and `cuda` over the machine's devices.

        Args:
            name: As given by the user.

        Returns:
            The device of this process.
        """
        import torch

        if self.world_size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Deals out work, largest first, each to the rank that has least.

        Args:
            sizes: Amount of work of each item; the same list on every rank.

        Returns:
            The items of this rank, ascending.
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
        """Waits for all ranks and collects one value from each.

        Args:
            value: Of this rank.

        Returns:
            Of all ranks, in order.
        """
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
