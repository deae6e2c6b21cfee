"""Constructor options → checked values, and the blocks that they describe."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

from timm.layers import LayerNorm, Mlp, to_2tuple
from torch import nn

from ..layers import EinFFT, HydraMixer, MambaVisionMixer, SSMBlock, VimMixer
from ..runtime.errors import ParameterError

SSM_MIXERS: dict[str, type[nn.Module]] = {
    "mambavision": MambaVisionMixer,
    "vim": VimMixer,
    "hydra": HydraMixer,
}
CHANNEL_MIXERS = ("einfft", "mlp", "none")
GLOBAL_POOLS = ("", "avg", "avgmax", "max", "token", "map")
POS_EMBEDS = ("", "none", "learn")
SSM_POSITIONS = ("first", "last", "alternate")
MIXER_LABELS = {"mambavision": "MambaVision", "vim": "Vim", "hydra": "Hydra"}
CHANNEL_LABELS = {"einfft": " + EinFFT", "mlp": " + MLP", "none": ""}


def make_ssm_block(
    mixer: type[nn.Module], channel_mixer: str, ssm_kwargs: dict[str, Any], options: dict[str, Any]
) -> SSMBlock:
    """Builds a state-space block from the options that timm's VisionTransformer hands to its blocks."""
    dim, dd = options["dim"], {"device": options["device"], "dtype": options["dtype"]}
    allowed = set(inspect.signature(mixer).parameters) - {"d_model", "device", "dtype"}
    unknown = sorted(set(ssm_kwargs) - allowed)
    if unknown:
        raise ParameterError(f"`ssm_kwargs` has {unknown}; {mixer.__name__} takes {sorted(allowed)}")
    channels: nn.Module | None = None
    if channel_mixer == "einfft":
        channels = EinFFT(dim, **dd)
    elif channel_mixer == "mlp":
        hidden = int(dim * options["mlp_ratio"])
        channels = Mlp(dim, hidden, act_layer=options["act_layer"], drop=options["proj_drop"], **dd)
    return SSMBlock(
        dim,
        mixer(dim, **ssm_kwargs, **dd),
        channels,
        norm_layer=options["norm_layer"],
        init_values=options["init_values"],
        drop=options["proj_drop"],
        drop_path=options["drop_path"],
        **dd,
    )


def default_norm(ssm_mixer: str | None) -> Callable[..., nn.Module]:
    """The normalisation of the published models."""
    if ssm_mixer == "vim":
        return partial(nn.RMSNorm, eps=1e-5)
    return partial(LayerNorm, eps=1e-6 if ssm_mixer is None else 1e-5)


def num_ssm_blocks(ssm_depth: int | str, depth: int, ssm_mixer: str | None) -> int:
    """Resolves ``ssm_depth`` to a number of blocks."""
    if depth < 1:
        raise ParameterError(f"`depth` is {depth}; it must be at least 1")
    named = {"half": math.ceil(depth / 2), "all": depth}
    count = named.get(ssm_depth, -1) if isinstance(ssm_depth, str) else ssm_depth
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= depth:
        raise ParameterError(
            f"`ssm_depth` is {ssm_depth!r}; allowed are 0 to depth={depth}, 'half' and 'all'"
        )
    if ssm_mixer is None and count > 0:
        raise ParameterError(
            f"`ssm_depth` is {ssm_depth!r}, but `ssm_mixer` is None; set it to one of {sorted(SSM_MIXERS)}"
        )
    return count


def ssm_places(num_ssm: int, depth: int, position: str) -> list[bool]:
    """Says of each block whether it is a state-space block.

    "first" and "last" put them together at an end; "alternate" spreads them evenly, beginning with one.
    """
    check_choice("ssm_position", position, SSM_POSITIONS)
    if position == "alternate":
        # as many among the first i blocks as i · num_ssm / depth, rounded up
        return [-(-(i + 1) * num_ssm // depth) > -(-i * num_ssm // depth) for i in range(depth)]
    first = 0 if position == "first" else depth - num_ssm
    return [first <= i < first + num_ssm for i in range(depth)]


def describe_layout(places: list[bool], ssm_mixer: str | None, channel_mixer: str) -> str:
    """Describes the blocks, for instance "12 × MambaVision + EinFFT, 12 × attention + MLP"."""
    names = {False: "attention + MLP"}
    if ssm_mixer is not None:
        names[True] = f"{MIXER_LABELS[ssm_mixer]}{CHANNEL_LABELS[channel_mixer]}"
    runs = [(names[ssm], len(list(run))) for ssm, run in groupby(places)]
    period = runs[:2]
    repeats = len(runs) // 2
    if repeats > 1 and runs == period * repeats:
        inner = ", ".join(f"{count} × {name}" for name, count in period)
        return f"{repeats} × ({inner})"
    return ", ".join(f"{count} × {name}" for name, count in runs)


def check_std(name: str, value: float) -> None:
    """Raises ParameterError for a standard deviation that is not a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ParameterError(f"`{name}` is {value!r}; it must be a number of at least 0")


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ParameterError for a value that is not among the allowed."""
    if value not in allowed:
        raise ParameterError(
            f"`{name}` is {value!r}; allowed are {', '.join(repr(choice) for choice in allowed)}"
        )


def check_size(
    img_size: int | tuple[int, int] | None,
    patch_size: int | tuple[int, int],
    dynamic_pad: bool,
    name: str = "img_size",
) -> None:
    """Raises ParameterError for an image that is not a whole number of patches."""
    if img_size is None or dynamic_pad:
        return
    for image, patch in zip(to_2tuple(img_size), to_2tuple(patch_size), strict=True):
        if image <= 0 or patch <= 0 or image % patch:
            raise ParameterError(
                f"`{name}` is {img_size}; it must be a multiple of `patch_size`, which is {patch_size}"
            )
