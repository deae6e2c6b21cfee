"""Blocks that also carry a token which reads the others and which nothing reads: tokens and token in, both out.

Each class stands in front of a block's own class and adds a second way of calling it. Called with a tensor, a block
does what it always did. Called with :class:`WithST`, it sends the ordinary tokens through the same calls of the same
modules, one after the other, and the ST token through calls of its own, so that no number of the ordinary ones can
change. A block has to return both at once: whatever wraps its ``forward`` (FSDP, checkpointing, compilation) must see
all that its weights make.

The ST token draws no random numbers: dropout and drop path leave it alone. A single draw would shift the generator,
and with it every later mask of the ordinary tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import timm.layers
import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import vision_transformer
from torch import Tensor, nn

from ..layers import SSMBlock
from .errors import FinetuneError
from .scan_reading import read_mixer


class WithST(NamedTuple):
    """What goes through a block.

    Attributes:
        tokens: The ordinary tokens, (batch, length, dim).
        st: The ST token, (batch, 1, dim).
        write: tanh of what lets attention see the ST token, a scalar; None where it never does.
    """

    tokens: Tensor
    st: Tensor
    write: Tensor | None = None


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Switches off what would draw random numbers."""
    noisy: list[nn.Module] = []
    if module.training:
        noisy = [m for m in module.modules() if isinstance(m, nn.Dropout) and m.p > 0 and m.training]
    for dropout in noisy:
        dropout.training = False
    try:
        yield
    finally:
        for dropout in noisy:
            dropout.training = True


# what the classes below stand in front of: any module, with attributes of any kind
_Module: Any = nn.Module


class OneWayAttention(_Module):
    """timm's ``Attention`` for both: the ST token attends to all tokens and to itself, o = SDPA(q, [K; k], [V; v])."""

    _kept: dict[str, Tensor] | None = None

    # timm's forward finds these modules by their names; meanwhile they also keep what they return
    @property
    def qkv(self) -> Any:
        """Projection to queries, keys and values."""
        return self._keeping("qkv")

    @property
    def q_norm(self) -> Any:
        """Normalisation of queries."""
        return self._keeping("q_norm")

    @property
    def k_norm(self) -> Any:
        """Normalisation of keys."""
        return self._keeping("k_norm")

    def _keeping(self, name: str) -> Any:
        module = self._modules[name]
        return module if self._kept is None else functools.partial(self._keep, name, module)

    def _keep(self, name: str, module: Any, x: Tensor) -> Tensor:
        result: Tensor = module(x)
        assert self._kept is not None
        self._kept[name] = result
        return result

    def forward(self, x: Tensor | WithST, *args: Any, **kwargs: Any) -> Any:
        """Attends; (batch, length, dim) in and out, or both kinds of tokens in and out."""
        if not isinstance(x, WithST):
            return super().forward(x, *args, **kwargs)
        kept: dict[str, Tensor] = {}
        self._kept = kept
        try:
            tokens = super().forward(x.tokens, *args, **kwargs)
        finally:
            self._kept = None
        with _without_dropout(self):
            q, k, v = self._heads(self.qkv(x.st))
            k = torch.cat([kept["k_norm"], self.k_norm(k)], dim=2)
            v = torch.cat([self._heads(kept["qkv"])[2], v], dim=2)
            st = self._project(self._attend(self.q_norm(q), k, v), x.st)
            if x.write is not None:
                seen = self._project(self._attend(kept["q_norm"], k, v), x.tokens)
                # exactly the tokens' own output where nothing is written
                tokens = tokens + x.write * (seen - tokens)
        return x._replace(tokens=tokens, st=st)

    def _heads(self, qkv: Tensor) -> Any:
        """Cuts (batch, length, 3 · dim) into q, k and v, (batch, heads, length, head_dim) each."""
        return qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends without dropout; returns (batch, length, dim)."""
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def _project(self, y: Tensor, x: Tensor) -> Tensor:
        """Does what follows attention, on tokens y that were made of tokens x."""
        y = self.norm(y)
        # timm before 1.0.30 has none
        gate = getattr(self, "gate", None)
        if gate is not None:
            y = y * gate(x).sigmoid()
        projected: Tensor = self.proj(y)
        return projected


class OneWayDiffAttention(OneWayAttention):
    """The same for timm's ``DiffAttention``, the difference of two attentions. Source: arXiv 2410.05258."""

    def _heads(self, qkv: Tensor) -> Any:
        q, k, v = qkv.chunk(3, dim=-1)
        q, k = (x.unflatten(-1, (2 * self.num_heads, -1)).transpose(1, 2) for x in (q, k))
        return q, k, v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (q1, q2), (k1, k2) = (x.unflatten(1, (self.num_heads, 2)).unbind(2) for x in (q, k))
        first, second = (F.scaled_dot_product_attention(*pair, v) for pair in ((q1, k1), (q2, k2)))
        y = self.sub_norm(first - self._compute_lambda().type_as(q) * second) * (1 - self.lambda_init)
        attended: Tensor = y.transpose(1, 2).flatten(2)
        return attended


class OneWayMlp(_Module):
    """Any MLP for both kinds of tokens."""

    def forward(self, x: Tensor | WithST, *args: Any, **kwargs: Any) -> Any:
        """Mixes channels; (batch, length, dim) in and out, or both kinds of tokens in and out."""
        if not isinstance(x, WithST):
            return super().forward(x, *args, **kwargs)
        tokens = super().forward(x.tokens)
        with _without_dropout(self):
            return x._replace(tokens=tokens, st=super().forward(x.st))


class _OneWayBlock(_Module):
    def forward(self, x: Tensor | WithST, *args: Any, **kwargs: Any) -> Any:
        """Runs the block; (batch, length, dim) in and out, or both kinds of tokens in and out."""
        if not isinstance(x, WithST):
            return super().forward(x, *args, **kwargs)
        return self._run(x)

    def _run(self, x: WithST) -> WithST:
        raise NotImplementedError


class OneWayBlock(_OneWayBlock):
    """timm's ``Block`` for both kinds of tokens."""

    def _run(self, x: WithST) -> WithST:
        mixed = self.attn(x._replace(tokens=self.norm1(x.tokens), st=self.norm1(x.st)))
        x = x._replace(
            tokens=x.tokens + self.drop_path1(self.ls1(mixed.tokens)), st=x.st + self.ls1(mixed.st)
        )
        mixed = self.mlp(x._replace(tokens=self.norm2(x.tokens), st=self.norm2(x.st)))
        return x._replace(
            tokens=x.tokens + self.drop_path2(self.ls2(mixed.tokens)), st=x.st + self.ls2(mixed.st)
        )


class OneWayResPostBlock(_OneWayBlock):
    """timm's ``ResPostBlock``, which normalises after its branches, for both kinds of tokens."""

    def _run(self, x: WithST) -> WithST:
        for branch, norm, drop_path in (
            (self.attn, self.norm1, self.drop_path1),
            (self.mlp, self.norm2, self.drop_path2),
        ):
            mixed = branch(x)
            x = x._replace(tokens=x.tokens + drop_path(norm(mixed.tokens)), st=x.st + norm(mixed.st))
        return x


class OneWayParallelThingsBlock(_OneWayBlock):
    """timm's ``ParallelThingsBlock``, several attentions and then several MLPs, for both kinds of tokens."""

    def _run(self, x: WithST) -> WithST:
        for branches, name in ((self.attns, "attn"), (self.ffns, "mlp")):
            tokens, st = [], []
            for branch in branches:
                inner = x._replace(tokens=branch.norm(x.tokens), st=branch.norm(x.st))
                mixed = getattr(branch, name)(inner)
                tokens.append(branch.drop_path(branch.ls(mixed.tokens)))
                st.append(branch.ls(mixed.st))
            x = x._replace(
                tokens=x.tokens + torch.stack(tokens).sum(dim=0), st=x.st + torch.stack(st).sum(dim=0)
            )
        return x


class OneWaySSMBlock(_OneWayBlock):
    """Our state-space block for both: convolution and channel mixer see the ST token as a sequence of its own."""

    def _run(self, x: WithST) -> WithST:
        tokens, st = x.tokens, x.st
        with _without_dropout(self):
            # of one token, before the ordinary tokens take the generator's place again
            own = self.mixer.scan_inputs(self.norm1(st))
        read = self.mixer.scan_inputs(self.norm1(tokens))
        tokens = tokens + self.drop_path1(self.ls1(self.drop(self.mixer.scan(*read))))
        with _without_dropout(self):
            st = st + self.ls1(read_mixer(self.mixer, read, own))
        if self.channel_mixer is not None:
            mixed = self.channel_mixer(self.norm2(tokens)).to(tokens.dtype)
            tokens = tokens + self.drop_path2(self.ls2(mixed))
            with _without_dropout(self):
                st = st + self.ls2(self.channel_mixer(self.norm2(st)).to(st.dtype))
        return x._replace(tokens=tokens, st=st)


def _by_forward() -> dict[Any, Any]:
    """Which class takes a module, by the forward of its own: a subclass that overrides it does something else."""
    known = {
        Attention: OneWayAttention,
        getattr(timm.layers, "DiffAttention", None): OneWayDiffAttention,
        SSMBlock: OneWaySSMBlock,
    }
    for name, found in (
        ("Block", OneWayBlock),
        ("ResPostBlock", OneWayResPostBlock),
        ("ParallelThingsBlock", OneWayParallelThingsBlock),
    ):
        known[getattr(vision_transformer, name, None)] = found
    return {own.forward: found for own, found in known.items() if own is not None}


@functools.cache
def _class_in_front(front: Any, own: Any) -> Any:
    return type(f"{own.__name__}WithST", (front, own), {"__module__": __name__})


def _take(module: nn.Module, front: Any) -> None:
    own: Any = type(module)
    module.__class__ = _class_in_front(front, own)


def make_one_way(blocks: list[nn.Module], start: int) -> None:
    """Teaches blocks to take the ST token along, in place; their parameters and names stay as they are.

    Args:
        blocks: All blocks of a backbone; those that have learned it already are left alone.
        start: The first one to do it.

    Raises:
        FinetuneError: A block is of a kind that is not known; then none is changed.
    """
    taken: dict[int, tuple[nn.Module, type[nn.Module]]] = {}
    known = _by_forward()

    def plan(module: nn.Module, where: str) -> None:
        if isinstance(module, OneWayAttention | _OneWayBlock):
            return
        front = known.get(type(module).forward)
        if front is None:
            names = sorted({function.__qualname__.removesuffix(".forward") for function in known})
            raise FinetuneError(
                f"`backbone` has a {type(module).__name__} at {where}, which cannot carry an ST token; it can be one "
                f"with {', '.join(names)}"
            )
        taken[id(module)] = (module, front)

    for number, block in enumerate(blocks[start:], start=start):
        plan(block, f"blocks.{number}")
        for name, child in block.named_modules():
            part = name.rpartition(".")[2]
            if part == "attn" and not isinstance(child, nn.Sequential):
                plan(child, f"blocks.{number}.{name}")
            elif part == "mlp" and not isinstance(child, OneWayMlp):
                taken[id(child)] = (child, OneWayMlp)
    for module, front in taken.values():
        _take(module, front)


def make_ordinary(module: nn.Module) -> None:
    """Undoes ``make_one_way`` for a module and all within it."""
    for part in module.modules():
        if isinstance(part, OneWayAttention | OneWayMlp | _OneWayBlock):
            part.__class__ = type(part).__bases__[1]
