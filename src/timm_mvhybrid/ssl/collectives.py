"""Sums, maxima and rows of every process, or of this one where it is alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..runtime.ranks import num_ranks, own_rank


def sum_over_ranks(x: Tensor, group: Any = None) -> Tensor:
    """Sums tensors of one shape over the processes, in place."""
    if num_ranks(group) > 1:
        dist.all_reduce(x, dist.ReduceOp.SUM, group=group)
    return x


def logsumexp_over_ranks(x: Tensor, group: Any = None) -> Tensor:
    """Computes log Σ exp(x) over the processes; tensors have one shape, and −inf where there is nothing to add."""
    if num_ranks(group) == 1:
        return x
    highest = x.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    shift = torch.where(highest.isneginf(), torch.zeros_like(highest), highest)
    return shift + sum_over_ranks(torch.exp(x - shift), group).log()


def gather_rows(x: Tensor, group: Any = None) -> Tensor:
    """Joins the rows of every process, for a loss that every process computes as a whole.

    The gradient is this process's rows of the whole loss's gradient, times the number of processes: data parallelism
    divides by it when it averages the parameters' gradients. Nothing is communicated in the backward pass.

    Tensors are (n, D) with one n everywhere, the result (n · processes, D), process by process.
    """
    return x if num_ranks(group) == 1 else _GatherRows.apply(x, group)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ranks, ctx.rank, ctx.num_rows = num_ranks(group), own_rank(group), x.shape[0]
        ctx.ranks = ranks
        parts = [torch.empty_like(x) for _ in range(ranks)]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        first = ctx.rank * ctx.num_rows
        return gradient[first : first + ctx.num_rows] * ctx.ranks, None
