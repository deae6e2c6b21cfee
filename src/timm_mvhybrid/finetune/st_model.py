"""A backbone with one token more, for molecular state, that the tokens of morphology never notice."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import VisionTransformer, checkpoint
from torch import Tensor, nn

from ..layers import SSMBlock
from ..layers.token_order import in_order
from ..models import HybridVisionTransformer
from ..models.chunks import num_chunks
from .errors import FinetuneError
from .one_way_blocks import WithST, make_one_way, make_ordinary

_TOKEN_STD = 0.02


class STModel(nn.Module):
    """A VisionTransformer with an ST token that reads the others, while nothing reads it.

    Class and patch features are those of the backbone without it: bit for bit, whatever the token holds, in training
    too, because the ordinary tokens go through the same calls. A register token would not do: it changes what the
    others attend to, and moves EinFFT's frequencies. So whatever is trained with the token leaves an ordinary backbone
    behind, ``backbone``, which computes exactly the class and patch features that were trained.

    In an attention block the token attends to all tokens and to itself. In a state-space block it reads the scan's
    state at the class token (MambaVision's one-way scan: at its end) with its own C, and writes nothing to it;
    convolution and EinFFT see it as a sequence of its own. It goes through the same norms and MLPs as the others.
    Dropout and drop path leave it alone, so that the generator's numbers stay those of the ordinary tokens.

    Source: the name and purpose of the token are MINT's (arXiv 2603.07895), of which no code is public; the mechanism
    is this package's.

    Args:
        backbone: Any of this package, or any timm VisionTransformer of ordinary attention blocks. It is not copied,
            and its blocks learn to carry the token (:meth:`release` undoes that); parameters, their names, and what it
            computes by itself stay as they are.
        st_start: The first block with the token. By default the first attention block, or 0 where there is none.
        st_writes: Whether attention may learn to see the token: its output o becomes o + tanh(γ)(o' − o) with o' that
            of attention to all tokens and the ST token, and one γ a block, which starts at 0. As soon as a γ is not 0,
            class and patch features are no longer those of the backbone alone.

    Attributes:
        backbone: The backbone.
        st_token: The token's initial value, (1, 1, dim), normal with standard deviation 0.02.
        write_gates: γ of the blocks from ``st_start``, or None.
        st_start: The first block with the token.

    Raises:
        FinetuneError: The backbone cannot carry the token, or ``st_start`` is no block of it.

    Examples:
        >>> import timm, torch, timm_mvhybrid
        >>> from timm_mvhybrid.finetune import STModel
        >>> model = STModel(timm.create_model("test_mvhybrid").eval())
        >>> {name: tuple(x.shape) for name, x in model.features(torch.zeros(1, 3, 128, 128)).items()}
        {'class': (1, 64), 'st': (1, 64), 'patch': (1, 64, 64)}
    """

    def __init__(self, backbone: nn.Module, st_start: int | None = None, st_writes: bool = False) -> None:
        super().__init__()
        _check(backbone)
        inner: Any = backbone
        blocks = list(inner.blocks)
        is_attention = [not isinstance(block, SSMBlock) for block in blocks]
        if st_start is None:
            st_start = is_attention.index(True) if any(is_attention) else 0
        if isinstance(st_start, bool) or not isinstance(st_start, int) or not 0 <= st_start < len(blocks):
            raise FinetuneError(
                f"`st_start` is {st_start!r}; it must be a block of the backbone, 0 to {len(blocks) - 1}"
            )
        if st_writes and not any(is_attention[st_start:]):
            raise FinetuneError(
                f"`st_writes` is True, but no block from `st_start`, {st_start}, has attention that could see the token"
            )
        make_one_way(blocks, st_start)
        self.backbone: Any = backbone
        self.st_start = st_start
        like = next(backbone.parameters())
        dd: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.st_token = nn.Parameter(torch.empty(1, 1, inner.embed_dim, **dd))
        self.write_gates = nn.Parameter(torch.zeros(len(blocks) - st_start, **dd)) if st_writes else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the token anew, and closes the gates; the backbone stays as it is."""
        nn.init.normal_(self.st_token, std=_TOKEN_STD)
        if self.write_gates is not None:
            nn.init.zeros_(self.write_gates)

    @property
    def embed_dim(self) -> int:
        """Width of the tokens."""
        return int(self.backbone.embed_dim)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names the parameters that should have no weight decay."""
        return {"st_token", "write_gates"} | {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches on or off that blocks are computed again in the backward pass, rather than kept."""
        self.backbone.set_grad_checkpointing(enable)

    def release(self) -> nn.Module:
        """Returns the backbone as it was given, with the weights of now; this model cannot be used after it."""
        make_ordinary(self.backbone)
        backbone: nn.Module = self.backbone
        return backbone

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Computes the normalised features of images.

        Args:
            x: Images, (batch, in_chans, height, width), normalised.

        Returns:
            "class", (batch, dim), which a backbone without class token has not; "st", (batch, dim); and "patch",
            (batch, patches, dim), row by row.
        """
        found: dict[str, Tensor] = self(x)
        return found

    def forward_features(self, x: Tensor) -> Tensor:
        """Computes the normalised tokens of images, (batch, 1 + 1 + patches, dim): class token, ST token, patches.

        A backbone without class token has (batch, 1 + patches, dim). Register tokens are left out.

        Args:
            x: Images, (batch, in_chans, height, width), normalised.

        Returns:
            The tokens.
        """
        found = self.features(x)
        first = [found[name].unsqueeze(1) for name in ("class", "st") if name in found]
        return torch.cat([*first, found["patch"]], dim=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Does what :meth:`features` says; where FSDP shards the model, its weights are whole nowhere else."""
        return read_features(
            self.backbone, x, st_token=self.st_token, write_gates=self.write_gates, st_start=self.st_start
        )


def read_features(
    backbone: Any, x: Tensor, *, st_token: Tensor, write_gates: Tensor | None, st_start: int
) -> dict[str, Tensor]:
    """Computes the normalised features of a backbone and of an ST token.

    Args:
        backbone: Of an :class:`STModel`.
        x: Images, (batch, in_chans, height, width), normalised.
        st_token: The token's initial value, (1, 1, dim).
        write_gates: γ of the blocks from ``st_start``, or None.
        st_start: The first block with the token.

    Returns:
        As :meth:`STModel.features`.
    """
    ours = isinstance(backbone, HybridVisionTransformer)
    tokens = _embed(backbone, x)
    # as the backbone cuts a large batch, so that sums round alike
    parts = num_chunks(tokens, backbone.blocks) if ours else 1
    chunks = tokens.tensor_split(parts) if parts > 1 else (tokens,)
    found = [_run(backbone, chunk, st_token, write_gates, st_start) for chunk in chunks]
    tokens, st = found[0] if parts == 1 else (torch.cat(pieces) for pieces in zip(*found, strict=True))
    tokens, st = backbone.norm(tokens), backbone.norm(st)
    features = {"st": st[:, 0], "patch": tokens[:, backbone.num_prefix_tokens :]}
    if backbone.has_class_token:
        features = {"class": tokens[:, 0], **features}
    # no views, on which FSDP's hooks would not see operations in place
    return {name: x.clone() for name, x in features.items()}


def _embed(backbone: Any, x: Tensor) -> Tensor:
    """Turns images into tokens in timm's order, as the backbone does."""
    if isinstance(backbone, HybridVisionTransformer):
        return backbone._embed(x, None)
    tokens: Tensor = backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(x))))
    return tokens


def _run(
    backbone: Any, tokens: Tensor, st_token: Tensor, write_gates: Tensor | None, st_start: int
) -> tuple[Tensor, Tensor]:
    """Runs the blocks, in the order of tokens that each expects; returns ordinary tokens in timm's, and ST token."""
    ours = isinstance(backbone, HybridVisionTransformer)
    places = backbone.ssm_places if ours else [False] * len(backbone.blocks)
    scanned = False
    num_prefix = backbone.num_prefix_tokens
    recompute = backbone.grad_checkpointing and torch.is_grad_enabled()
    st = st_token.expand(len(tokens), -1, -1).to(tokens.dtype)
    for index, block in enumerate(backbone.blocks):
        if places[index] != scanned:
            scanned = not scanned
            tokens = in_order(tokens, num_prefix, scanned)
        given: Any = tokens
        if index >= st_start:
            write = None if write_gates is None else write_gates[index - st_start].tanh()
            given = WithST(tokens, st, write)
        found = checkpoint(block, given) if recompute else block(given)
        tokens, st = (found.tokens, found.st) if index >= st_start else (found, st)
    if scanned:
        tokens = in_order(tokens, num_prefix, False)
    return tokens, st


def _check(backbone: nn.Module) -> None:
    """Raises FinetuneError for a model whose steps between image and features are not known."""
    name = type(backbone).__name__
    if not isinstance(backbone, VisionTransformer):
        raise FinetuneError(
            f"`backbone` is a {name}; an ST token goes into timm's VisionTransformers, ours among them (of a wrapped "
            "model give the VisionTransformer inside)"
        )
    for block in backbone.blocks:
        if getattr(getattr(block, "mixer", None), "A_imag", None) is not None:
            raise FinetuneError(
                "`backbone` has complex eigenvalues; an ST token reads the states of real ones: give a model without "
                "`eigenvalues='complex'`"
            )
    for method in ("forward_features", "_run_chunk"):
        own = getattr(type(backbone), method, None)
        if own not in (getattr(kind, method, None) for kind in (VisionTransformer, HybridVisionTransformer)):
            raise FinetuneError(
                f"`backbone` is a {name} with a {method} of its own, whose steps are not known; give a VisionTransformer "
                "that computes features as timm's does"
            )
