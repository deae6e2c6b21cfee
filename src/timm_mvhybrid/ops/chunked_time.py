"""Time in chunks, in functional operations: tokens → chunks of steps; ends of chunks → states at their starts."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cut_time(tokens: Tensor, chunks: int, steps: int) -> Tensor:
    """Cuts (batch, length, ...) into (batch, chunks, steps, ...).

    After the end there are zeros: a step of δ = 0 changes no state.
    """
    missing = chunks * steps - tokens.shape[1]
    padded = F.pad(tokens, [0, 0] * (tokens.ndim - 2) + [0, missing]) if missing else tokens
    return padded.unflatten(1, (chunks, steps))


def carry(ends: Tensor, decays: Tensor) -> tuple[Tensor, Tensor]:
    """Turns the chunks' ends from zero into the states at their starts, and the last state.

    Args:
        ends: (batch, chunks, ...).
        decays: What is left of a state after a chunk, in a shape that multiplies ``ends``.

    Returns:
        The starts, of the shape of ``ends``, and the last state, (batch, 1, ...).
    """
    ends_each, decays_each = ends.split(1, dim=1), decays.split(1, dim=1)
    state = ends_each[0]
    starts = [torch.zeros_like(state)]
    for end, decay in zip(ends_each[1:], decays_each[1:], strict=True):
        starts.append(state)
        state = decay * state + end
    return torch.cat(starts, dim=1), state
