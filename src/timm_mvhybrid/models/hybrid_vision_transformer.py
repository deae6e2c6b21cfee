"""The backbone: image → patch tokens → state-space blocks → attention blocks → features.

Glossary. *Patch token*: the embedding of one 16 × 16 px square. *Prefix tokens*: the class token and the registers.
*timm order*: prefix tokens first, then patches row by row; all that a caller passes in or gets back. *Scan order*:
prefix tokens in the middle of the patches; what state-space blocks read. *Sequence mixer*: what moves information
between tokens (a scan, or attention). *Channel mixer*: what moves it between channels (EinFFT, or an MLP).
"""

from typing import Any, Final

import torch
from timm.layers import PatchDropout
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..layers.token_order import in_order
from ..runtime.errors import ParameterError
from ..weights.position_grid import resample_position
from .base_vision_transformer import BaseVisionTransformer
from .chunks import num_chunks
from .initialization import INIT_SCHEMES, initialize, reset_parameters, scale_output_projections
from .masks import mask_patches, resolve_attention_mask
from .options import (
    CHANNEL_MIXERS,
    GLOBAL_POOLS,
    POS_EMBEDS,
    SSM_MIXERS,
    check_choice,
    check_size,
    check_std,
    default_norm,
    describe_layout,
    make_ssm_block,
    num_ssm_blocks,
    ssm_places,
)


class HybridVisionTransformer(BaseVisionTransformer):
    """A timm VisionTransformer some of whose blocks, the leading ones unless asked, may mix their tokens by a state-space scan.

    Everything a caller sees is in timm's order. Attention blocks are timm's own; state-space blocks are
    ``SSMBlock``. A forward hook on a state-space block sees scan order.
    Source: MV_Hybrid (arXiv 2508.00383); without state-space blocks, DINOv2's ViT (arXiv 2304.07193).

    Args:
        img_size: Nominal image size in px, (height, width) or one number; a multiple of ``patch_size``.
        patch_size: Size of a patch in px.
        in_chans: Channels of the image.
        num_classes: Outputs of the head; 0 for none.
        global_pool: "token" (class token), "avg", "max", "avgmax" (over patch tokens), "map" (attention pooling), or
            "" for all tokens.
        embed_dim: Width of the tokens.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of an MLP in units of ``embed_dim``.
        ssm_mixer: Sequence mixer of the leading blocks: "mambavision", "vim" or "hydra"; None for attention alone.
        ssm_depth: Number of state-space blocks; "half" for ceil(depth / 2), "all" for every block.
        ssm_position: Where they are: "first", "last", or "alternate", spread evenly from the first block.
        channel_mixer: Channel mixer of the state-space blocks: "einfft", "mlp", or "none".
        ssm_kwargs: Further arguments of the sequence mixer (``d_state``, ``expand``, ``eigenvalues``, ...).
        init: "official" (the published models' initial weights) or "mamba" (textbook initial weights of the mixers).
        mask_token: Whether to make the parameter that replaces masked patches.
        mask_token_std: Standard deviation that it starts with; 0 as published, 0.02 where there is neither EinFFT nor
            position embedding: a mask token of 0 stays 0 there, and every LayerNorm multiplies its gradient.
        class_token: Whether there is a class token.
        reg_tokens: Number of register tokens, next to the class token.
        pos_embed: "learn" or "none". A model without position embedding takes any image size unresampled.
        no_embed_class: Whether the prefix tokens go without position embedding.
        init_values: Initial LayerScale; None for no LayerScale.
        fc_norm: Whether to normalise after pooling, not before. Default False, so that pooling can be changed without
            leaving the pretrained norm unused.
        dynamic_img_size: Whether forward takes any multiple of ``patch_size``, resampling a position embedding.
        drop_path_rate: Stochastic depth at the last block; it grows linearly from 0.
        proj_drop_rate: Dropout after sequence mixers and in MLPs.
        patch_drop_rate: Fraction of patches dropped in training; the others keep their order.
        norm_layer: Normalisation; by default LayerNorm (eps 1e-5), RMSNorm (eps 1e-5) for Vim and LayerNorm
            (eps 1e-6) for attention alone.
        act_layer: Activation of MLPs; GELU by default.
        weight_init: "" to initialise by ``init``, "skip" to leave that to a later ``init_weights``.
        device: Where the parameters are made.
        dtype: Their dtype; decay rates of the scans are at least float32.
        **kwargs: Further arguments of timm's VisionTransformer (``qkv_bias``, ``qk_norm``, ``pre_norm``,
            ``final_norm``, ``drop_rate``, ``attn_drop_rate``, ``dynamic_img_pad``, ...).

    Raises:
        ParameterError: An argument has a value that is not allowed; the message names it and what is.
    """

    has_ssm: Final[bool]
    ssm_places: list[bool]

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: str = "token",
        embed_dim: int = 384,
        depth: int = 24,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        ssm_mixer: str | None = "mambavision",
        ssm_depth: int | str = "half",
        ssm_position: str = "first",
        channel_mixer: str = "einfft",
        ssm_kwargs: dict[str, Any] | None = None,
        init: str = "official",
        mask_token: bool = False,
        mask_token_std: float = 0.0,
        class_token: bool = True,
        reg_tokens: int = 0,
        pos_embed: str = "none",
        no_embed_class: bool = False,
        init_values: float | None = None,
        fc_norm: bool | None = False,
        dynamic_img_size: bool = True,
        drop_path_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        norm_layer: Any = None,
        act_layer: Any = None,
        weight_init: str = "",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        check_choice("ssm_mixer", ssm_mixer, (*SSM_MIXERS, None))
        check_choice("channel_mixer", channel_mixer, CHANNEL_MIXERS)
        check_choice("init", init, INIT_SCHEMES)
        check_choice("global_pool", global_pool, GLOBAL_POOLS)
        check_choice("pos_embed", pos_embed, POS_EMBEDS)
        check_choice("weight_init", weight_init, ("", "skip"))
        check_size(img_size, patch_size, dynamic_pad=kwargs.get("dynamic_img_pad", False))
        if embed_dim <= 0 or num_heads <= 0 or embed_dim % num_heads:
            raise ParameterError(
                f"`num_heads` is {num_heads}; it must divide `embed_dim`, which is {embed_dim}"
            )
        if not class_token and global_pool == "token":
            raise ParameterError(
                "`global_pool` is 'token', but `class_token` is False; use 'avg', 'max', 'avgmax', 'map' or ''"
            )
        check_std("mask_token_std", mask_token_std)
        places = ssm_places(num_ssm_blocks(ssm_depth, depth, ssm_mixer), depth, ssm_position)
        if norm_layer is None:
            norm_layer = default_norm(ssm_mixer)

        def make_block(*, depth: int, **options: Any) -> nn.Module:
            if not places[depth]:
                return Block(depth=depth, **options)
            return make_ssm_block(SSM_MIXERS[str(ssm_mixer)], channel_mixer, ssm_kwargs or {}, options)

        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            init_values=init_values,
            class_token=class_token,
            reg_tokens=reg_tokens,
            pos_embed=pos_embed,
            no_embed_class=no_embed_class,
            fc_norm=fc_norm,
            dynamic_img_size=dynamic_img_size,
            drop_path_rate=drop_path_rate,
            proj_drop_rate=proj_drop_rate,
            norm_layer=norm_layer,
            act_layer=act_layer,
            weight_init="skip",
            block_fn=make_block,
            device=device,
            dtype=dtype,
            **kwargs,
        )
        # set by what loads verified weights
        self.weights_sha256 = ""
        self.has_ssm = any(places)
        self.ssm_depth, self.ssm_position, self.ssm_places = sum(places), ssm_position, places
        self.mask_token_std = mask_token_std
        self.ssm_mixer, self.channel_mixer, self.init = ssm_mixer, channel_mixer, init
        if patch_drop_rate > 0:
            # a scan reads the patches that are left in their order
            self.patch_drop = PatchDropout(
                patch_drop_rate, num_prefix_tokens=self.num_prefix_tokens, ordered=True
            )
        self.mask_token = nn.Parameter(torch.empty(1, embed_dim, **dd)) if mask_token else None
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Draws new initial weights.

        Args:
            mode: "official" or "mamba"; "" for what the model was built with.
            needs_reset: Whether the submodules draw their own weights first; needed after ``to_empty``.

        Raises:
            ParameterError: ``mode`` is neither of these.
        """
        check_choice("mode", mode, ("", *INIT_SCHEMES))
        if needs_reset:
            reset_parameters(self)
        initialize(self, mode or self.init, self.ssm_mixer)
        if self.fix_init:
            self.fix_init_weight()

    def fix_init_weight(self) -> None:
        """Divides the output projections of block i, counted from 1, by √(2 i)."""
        scale_output_projections(self.blocks)

    @torch.jit.ignore
    def layout(self) -> str:
        """Describes the blocks, for instance "12 × MambaVision + EinFFT, 12 × attention + MLP"."""
        return describe_layout(self.ssm_places[: len(self.blocks)], self.ssm_mixer, self.channel_mixer)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Joins prefix tokens, patch tokens and position embedding, in timm's order.

        timm before 1.0.31 drops the prefix tokens of a model without position embedding.
        """
        prefix: list[Tensor] = []
        if self.cls_token is not None:
            prefix.append(self.cls_token.expand(x.shape[0], -1, -1))
        if self.reg_token is not None:
            prefix.append(self.reg_token.expand(x.shape[0], -1, -1))
        pos_embed = self.pos_embed
        if self.dynamic_img_size:
            batch, height, width, dim = x.shape
            if pos_embed is not None:
                pos_embed = resample_position(
                    pos_embed,
                    new_size=(height, width),
                    old_size=self.patch_embed.grid_size,
                    num_prefix_tokens=0 if self.no_embed_class else self.num_prefix_tokens,
                )
            x = x.reshape(batch, -1, dim)
        if pos_embed is not None and self.no_embed_class:
            x = x + pos_embed
        if len(prefix) > 0:
            x = torch.cat(prefix + [x], dim=1)  # noqa: RUF005  (TorchScript unpacks no lists)
        if pos_embed is not None and not self.no_embed_class:
            x = x + pos_embed
        return self.pos_drop(x)

    def _embed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Turns images into tokens in timm's order."""
        x = self.patch_embed(x)
        if mask is not None:
            x = mask_patches(x, mask, self.mask_token)
        x = self._pos_embed(x)
        x = self.patch_drop(x)
        return self.norm_pre(x)

    def _run_blocks(
        self, x: Tensor, attn_mask: Tensor | None, taps: list[int], num_blocks: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs the first ``num_blocks`` blocks; returns their output and those of the blocks in ``taps``."""
        if not torch.jit.is_scripting() and attn_mask is None:
            parts = num_chunks(x, self.blocks)
            if parts > 1:
                results = [self._run_chunk(chunk, None, taps, num_blocks) for chunk in x.tensor_split(parts)]
                tapped = [
                    torch.cat(chunks) for chunks in zip(*(result[1] for result in results), strict=True)
                ]
                return torch.cat([result[0] for result in results]), tapped
        return self._run_chunk(x, attn_mask, taps, num_blocks)

    def _run_chunk(
        self, x: Tensor, attn_mask: Tensor | None, taps: list[int], num_blocks: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs them on images that are taken together.

        Tokens are in scan order in state-space blocks, and in timm's order in the others, so that attention maps and hooks
        inside attention blocks are in timm's order.
        """
        tapped: list[Tensor] = []
        scanned = False
        for i, block in enumerate(self.blocks):
            if i < num_blocks:
                if self.ssm_places[i] != scanned:
                    scanned = not scanned
                    x = in_order(x, self.num_prefix_tokens, scanned)
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpoint(block, x) if attn_mask is None else checkpoint(block, x, attn_mask)
                elif self.has_ssm:
                    x = block(x)
                else:
                    x = block(x, attn_mask=attn_mask)
                if i in taps:
                    tapped.append(in_order(x, self.num_prefix_tokens, False) if scanned else x)
        return in_order(x, self.num_prefix_tokens, False) if scanned else x, tapped

    def forward_features(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Computes the normalised tokens.

        Args:
            x: Images, (batch, in_chans, height, width), normalised.
            mask: True where a patch is replaced by the mask token, bool, (batch, patches), row by row.
            attn_mask: Attention mask, for models without state-space blocks.
            is_causal: Whether attention is causal, for models without state-space blocks.

        Returns:
            Tokens in timm's order, (batch, num_prefix_tokens + patches, embed_dim).

        Raises:
            ParameterError: A mask does not fit, or the model has no mask token or no attention to mask.
        """
        x = self._embed(x, mask)
        attn_mask = resolve_attention_mask(x, attn_mask, is_causal, self.has_ssm)
        taps: list[int] = []
        x, _ = self._run_blocks(x, attn_mask, taps, len(self.blocks))
        return self.norm(x)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Computes features, (batch, embed_dim), or the head's outputs, (batch, num_classes).

        It stands here, though it is timm's, because FX looks for leaf functions in the module of ``forward``.
        """
        return self.forward_head(self.forward_features(x, None, attn_mask, is_causal))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Computes the normalised tokens and the outputs of chosen blocks, all in timm's order.

        Args:
            x: Images, (batch, in_chans, height, width), normalised.
            indices: Blocks to return: the last n if a number, all if None.
            return_prefix_tokens: Whether to return each block's prefix tokens beside its patch tokens.
            norm: Whether the final norm is applied to the blocks' outputs too.
            stop_early: Whether to stop after the last of these blocks.
            output_fmt: "NCHW" for maps (batch, embed_dim, rows, columns), "NLC" for tokens (batch, patches, embed_dim).
            intermediates_only: Whether to leave the final tokens out.
            output_dict: Whether to return a dictionary with ``image_intermediates``, ``image_intermediates_prefix``
                and ``image_features``.
            attn_mask: Attention mask, for models without state-space blocks.
            is_causal: Whether attention is causal, for models without state-space blocks.

        Returns:
            (final tokens, intermediates), the intermediates alone, or a dictionary.

        Raises:
            ParameterError: ``output_fmt`` is neither of the two, or there is no attention to mask.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ParameterError(f"`output_fmt` is {output_fmt!r}; allowed are 'NCHW' and 'NLC'")
        taps, last = feature_take_indices(len(self.blocks), indices)
        batch, _, height, width = x.shape
        x = self._embed(x, None)
        attn_mask = resolve_attention_mask(x, attn_mask, is_causal, self.has_ssm)
        num_blocks = last + 1 if stop_early else len(self.blocks)
        x, intermediates = self._run_blocks(x, attn_mask, taps, num_blocks)
        if norm:
            intermediates = [self.norm(y) for y in intermediates]
        prefix = [y[:, : self.num_prefix_tokens] for y in intermediates]
        intermediates = [y[:, self.num_prefix_tokens :] for y in intermediates]
        if output_fmt == "NCHW":
            rows, columns = self.patch_embed.dynamic_feat_size((height, width))
            intermediates = [
                y.reshape(batch, rows, columns, -1).permute(0, 3, 1, 2).contiguous() for y in intermediates
            ]
        has_prefix = return_prefix_tokens and self.num_prefix_tokens > 0
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": intermediates}
            if has_prefix:
                result["image_intermediates_prefix"] = prefix
            if not intermediates_only:
                result["image_features"] = self.norm(x)
            return result
        if not torch.jit.is_scripting() and has_prefix:
            pairs = list(zip(intermediates, prefix, strict=True))
            return pairs if intermediates_only else (self.norm(x), pairs)
        if intermediates_only:
            return intermediates
        return self.norm(x), intermediates
