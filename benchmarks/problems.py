"""Inputs of the two scans, and what every implementation is asked to compute from them."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from timm_mvhybrid.ops import selective_scan_reference, ssd_scan_reference

from .agreement import check_agreement
from .measure import Contender

WORK = ("forward", "forward + backward")
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest errors, relative to the largest exact number; bfloat16 keeps 2 to 3 digits."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A scan to compute.

    Attributes:
        operation: Name of the scan.
        size: Its size, in words.
        leaves: Inputs by name, in the order of arguments; gradients of all of them are computed.
        cotangent: Of the output, in its shape.
        streamed: Names of the leaves that have a batch axis; these take part in the dtype of the problem.
        timed: Names of the leaves, and "y", that are transposed in token-major layout.
        reference: The specification.
    """

    operation: str
    size: str
    leaves: dict[str, Tensor]
    cotangent: Tensor
    streamed: tuple[str, ...]
    timed: tuple[str, ...]
    reference: Callable[..., Tensor]

    def to(self, dtype: torch.dtype) -> "Problem":
        """Rounds all that has a batch axis to a dtype.

        Args:
            dtype: The dtype.

        Returns:
            The problem; parameters keep float32.
        """
        leaves = {name: x.to(dtype) if name in self.streamed else x for name, x in self.leaves.items()}
        return replace(self, leaves=leaves, cotangent=self.cotangent.to(dtype))

    def forward_bytes(self) -> int:
        """Counts the bytes that a forward pass must move: every leaf in, y out."""
        return sum(_bytes(x) for x in (*self.leaves.values(), self.cotangent))

    def backward_bytes(self) -> int:
        """Counts the bytes that a backward pass must move: every leaf and dy in, every gradient out."""
        return _bytes(self.cotangent) + 2 * sum(_bytes(x) for x in self.leaves.values())

    def exact(self) -> dict[str, Tensor]:
        """Computes output and gradients by the reference in float64."""
        leaves = {name: x.double() for name, x in self.leaves.items()}
        exact = replace(self, leaves=leaves, cotangent=self.cotangent.double())
        return outputs_and_gradients(Peer(name="reference", scan=self.reference), exact)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An implementation of a scan.

    Attributes:
        name: What the report calls it.
        scan: The function of the leaves.
        token_major: Whether it takes (batch, length, channels) where the problem has (batch, channels, length).
        limits: Largest error allowed by dtype; ``LIMITS`` by default.
        context: Within which it runs, forward and backward.
    """

    name: str
    scan: Callable[..., Tensor]
    token_major: bool = False
    limits: Mapping[torch.dtype, float] = field(default_factory=lambda: LIMITS)
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def layout(self) -> str:
        """The layout, in words."""
        return "token-major" if self.token_major else "as drawn"


def selective_scan_problem(
    batch: int = 8,
    d_inner: int = 384,
    length: int = 257,
    d_state: int = 16,
    device: torch.device | str = "cpu",
) -> Problem:
    """Draws a selective scan, channel-major, A and the step sizes as Mamba initialises them.

    Step sizes of another order would let the states of some implementations underflow, and so slow these down.

    Args:
        batch: Sequences.
        d_inner: Channels.
        length: Tokens.
        d_state: States a channel.
        device: Where.

    Returns:
        The problem, in float32.
    """
    draw = _Draw(device)
    leaves = {
        "u": draw.normal(batch, d_inner, length),
        "delta": draw.normal(batch, d_inner, length) * 0.5,
        "A": -torch.arange(1.0, d_state + 1, device=device).expand(d_inner, -1).contiguous(),
        "B": draw.normal(batch, d_state, length),
        "C": draw.normal(batch, d_state, length),
        "D": draw.normal(d_inner),
        "delta_bias": draw.step_bias(d_inner),
    }

    def reference(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
    ) -> Tensor:
        y = selective_scan_reference(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)
        assert isinstance(y, Tensor)  # no last state was asked for
        return y

    return Problem(
        operation="selective_scan",
        size=f"batch × d_inner × length × d_state = {batch} × {d_inner} × {length} × {d_state}",
        leaves=leaves,
        cotangent=draw.normal(batch, d_inner, length),
        streamed=("u", "delta", "B", "C"),
        timed=("u", "delta", "B", "C", "y"),
        reference=reference,
    )


def ssd_scan_problem(
    batch: int = 128,
    length: int = 257,
    heads: int = 12,
    headdim: int = 64,
    d_state: int = 64,
    device: torch.device | str = "cpu",
) -> Problem:
    """Draws an SSD scan with one group, A and the step sizes as Mamba-2 initialises them.

    Args:
        batch: Sequences.
        length: Tokens.
        heads: Heads.
        headdim: Channels a head.
        d_state: States a channel.
        device: Where.

    Returns:
        The problem, in float32.
    """
    draw = _Draw(device)
    leaves = {
        "x": draw.normal(batch, length, heads, headdim),
        "dt": draw.normal(batch, length, heads) * 0.5,
        "A": -draw.uniform(heads, low=1.0, high=16.0),
        "B": draw.normal(batch, length, 1, d_state),
        "C": draw.normal(batch, length, 1, d_state),
        "D": draw.normal(heads),
        "dt_bias": draw.step_bias(heads),
    }

    def reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        y = ssd_scan_reference(x, dt, A, B, C, D, dt_bias=bias, dt_softplus=True)
        assert isinstance(y, Tensor)  # no last state was asked for
        return y

    return Problem(
        operation="ssd_scan",
        size=f"batch × length × heads × headdim = {batch} × {length} × {heads} × {headdim}, d_state {d_state}",
        leaves=leaves,
        cotangent=draw.normal(batch, length, heads, headdim),
        streamed=("x", "dt", "B", "C"),
        timed=(),
        reference=reference,
    )


def outputs_and_gradients(peer: Peer, problem: Problem) -> dict[str, Tensor]:
    """Computes output and gradients.

    Args:
        peer: By which implementation.
        problem: Of what.

    Returns:
        y and the gradients, in the layout of the problem.
    """
    leaves, cotangent = _arrange(peer, problem)
    with peer.context():
        y = peer.scan(*leaves)
        gradients = torch.autograd.grad(y, leaves, cotangent)
    results = {"y": y, **dict(zip(problem.leaves, gradients, strict=True))}
    if peer.token_major:
        results = {name: x.transpose(1, 2) if name in problem.timed else x for name, x in results.items()}
    return {name if name == "y" else f"gradient by {name}": x.detach() for name, x in results.items()}


def check_peer(peer: Peer, problem: Problem, exact: Mapping[str, Tensor]) -> dict[str, float]:
    """Compares a peer's output and gradients with the exact ones.

    Args:
        peer: The implementation.
        problem: The problem.
        exact: Its :meth:`Problem.exact` results.

    Returns:
        The errors by name.
    """
    name = f"{problem.operation}, {problem.size}, {dtype_name(problem.cotangent.dtype)}: {peer.name}"
    limit = peer.limits[problem.cotangent.dtype]
    return check_agreement(name, outputs_and_gradients(peer, problem), exact, limit)


def scan_calls(peer: Peer, problem: Problem) -> dict[str, Contender]:
    """Makes the calls to time.

    Args:
        peer: The implementation.
        problem: The problem.

    Returns:
        By ``WORK``: forward without autograd, and forward + backward with the gradients of all leaves.
    """
    leaves, cotangent = _arrange(peer, problem)

    def forward() -> Tensor:
        with torch.no_grad(), peer.context():
            return peer.scan(*leaves)

    def both() -> tuple[Tensor, ...]:
        with peer.context():
            return torch.autograd.grad(peer.scan(*leaves), leaves, cotangent)

    calls: tuple[Callable[[], object], ...] = (forward, both)
    return {work: Contender(name=peer.name, call=call) for work, call in zip(WORK, calls, strict=True)}


def dtype_name(dtype: torch.dtype) -> str:
    """Names a dtype without its module."""
    return str(dtype).removeprefix("torch.")


def _arrange(peer: Peer, problem: Problem) -> tuple[list[Tensor], Tensor]:
    """Copies leaves and cotangent into the peer's layout, contiguous."""

    def arrange(name: str, x: Tensor) -> Tensor:
        x = x.detach()
        if peer.token_major and name in problem.timed:
            x = x.transpose(1, 2)
        return x.clone(memory_format=torch.contiguous_format)

    leaves = [arrange(name, x).requires_grad_() for name, x in problem.leaves.items()]
    return leaves, arrange("y", problem.cotangent)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


class _Draw:
    """Random numbers, the same ones on every device."""

    def __init__(self, device: torch.device | str) -> None:
        self.device, self.generator = device, torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        return (torch.rand(shape, generator=self.generator) * (high - low) + low).to(self.device)

    def step_bias(self, size: int) -> Tensor:
        """Biases whose softplus is log-uniform between 0.001 and 0.1."""
        step = torch.exp(self.uniform(size, low=math.log(1e-3), high=math.log(0.1)))
        return step + torch.log(-torch.expm1(-step))
