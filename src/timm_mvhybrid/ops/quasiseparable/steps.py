"""Sizes of a call of Hydra's matrix, and the numbers that each step and head has one of."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ssd.cpu import LOG2_E, num_chunks
from ..step_sizes import softplus_


class Sizes(NamedTuple):
    """Sizes of a call."""

    batch: int
    length: int
    heads: int
    headdim: int
    groups: int
    d_state: int
    chunks: int
    steps: int  # of a chunk

    @property
    def width(self) -> int:
        """Channels of a group's heads."""
        return self.heads // self.groups * self.headdim

    @property
    def missing(self) -> int:
        """Steps that the last chunk has after the end; fewer than ``steps``."""
        return self.chunks * self.steps - self.length

    @property
    def matrices(self) -> tuple[int, ...]:
        """Shape of a row's B or C in one direction."""
        return self.chunks, self.groups, self.steps, self.d_state

    @property
    def tokens(self) -> tuple[int, ...]:
        """Shape of a row's tokens."""
        return self.chunks, self.heads, self.steps, self.headdim

    @property
    def group_tokens(self) -> tuple[int, ...]:
        """Shape of the tokens of all but one chunk that a direction reads a row's states for, or makes them of."""
        return self.chunks - 1, self.groups, self.steps, self.width

    @property
    def states(self) -> tuple[int, ...]:
        """Shape of the states between the chunks that a direction has in a row."""
        return self.chunks - 1, self.groups, self.d_state, self.width


class Steps(NamedTuple):
    """Numbers of each step and head, (2, batch, chunks, heads, steps), forward direction first.

    The decay from a step j to the output of token i is 2^(row_i − column_j) · row_factor_i · column_factor_j / δ_j,
    where the factors hold what rounding took from the exponents.
    """

    biased: Tensor  # raw step sizes plus bias
    step: Tensor  # δ
    row: Tensor
    column: Tensor
    row_factor: Tensor
    column_factor: Tensor  # with δ
    leaving: Tensor  # what is left of the state that enters the chunk
    entering: Tensor  # what a step leaves in the state that leaves the chunk, with δ
    total: Tensor  # what a chunk leaves of a state, (2, batch, chunks, heads)


def sizes(x: Tensor, B: Tensor) -> Sizes:
    """Reads the sizes of a call from its arguments."""
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[-2:]
    chunks = num_chunks(length)
    return Sizes(batch, length, heads, headdim, groups, d_state, chunks, -(-length // chunks))


def step_numbers(dt: Tensor, A: Tensor, dt_bias: Tensor, size: Sizes, dtype: torch.dtype) -> Steps:
    """Computes the numbers of each step; log-decays are summed in float64."""
    biased = by_step(dt.to(dtype), size).permute(2, 0, 1, 3, 4) + dt_bias.to(dtype).unsqueeze(-1)
    step = biased.clone(memory_format=torch.contiguous_format)
    softplus_(step)
    log_decay = step.double() * (A.double() * LOG2_E).unsqueeze(-1)
    until = log_decay.cumsum(-1)
    before, end = until - log_decay, until[..., -1:]
    exact = torch.stack([before[0], -until[1], until[0], -before[1]])
    coarse = exact.to(dtype)
    # what rounding took, of the columns with the opposite sign
    fine = (exact - coarse).to(dtype)
    fine[2:].neg_()
    fine.exp2_()[2:].mul_(step)
    across = torch.stack([before[0], end[1] - until[1], end[0] - until[0], before[1]]).exp2_().to(dtype)
    across[2:].mul_(step)
    return Steps(
        biased=biased,
        step=step,
        row=coarse[:2],
        column=coarse[2:],
        row_factor=fine[:2],
        column_factor=fine[2:],
        leaving=across[:2],
        entering=across[2:],
        total=end.squeeze(-1).exp2().to(dtype),
    )


def by_step(values: Tensor, size: Sizes) -> Tensor:
    """Views (batch, length, ..., heads) as (batch, chunks, ..., heads, steps).

    What fills up the last chunk does not matter: after the end x, B and C are zero, and no state comes from there.
    """
    if size.missing:
        values = F.pad(values, [0, 0] * (values.ndim - 2) + [0, size.missing])
    return values.unflatten(1, (size.chunks, size.steps)).movedim(2, -1)
