"""The six backbones of the MV_Hybrid comparison as timm models, in two sizes, and a model of each kind for tests.

Every model takes patches of 16 px from images of 256 px at 0.5 µm/px, normalised by the mean and deviation of H&E
slides. ``timm.create_model(name, **options)`` passes options to ``HybridVisionTransformer``.
Source: MV_Hybrid (arXiv 2508.00383), table of compared architectures.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg

from ..weights.errors import CheckpointError
from ..weights.organization import follow, organization, update_registry
from .hybrid_vision_transformer import HybridVisionTransformer
from .pretrained import PretrainedModel, read_pretrained

HE_MEAN = (0.70322989, 0.53606487, 0.66096631)
"""Mean of H&E slides in red, green and blue, for pixels from 0 to 1."""
HE_STD = (0.21716536, 0.26081574, 0.20723464)
"""Their standard deviation."""

MODEL_NAMES = (
    "mvhybrid_small_patch16_256",
    "hydra_hybrid_small_patch16_256",
    "vim_einfft_small_patch16_256",
    "hydra_einfft_small_patch16_256",
    "vit12_small_patch16_256",
    "vit24_small_patch16_256",
)
"""The six backbones, of the published width of 384."""
TINY_MODEL_NAMES = tuple(name.replace("_small_", "_tiny_") for name in MODEL_NAMES)
"""The six backbones at half the width, and of 12 blocks where the small ones have 24, except ``vit24``."""
TEST_MODEL_NAMES = (
    "test_mvhybrid",
    "test_hydra_hybrid",
    "test_vim_einfft",
    "test_hydra_einfft",
    "test_vit12",
)
"""Models of the same blocks and a few kilobytes, for tests."""
ALL_MODEL_NAMES = (*MODEL_NAMES, *TINY_MODEL_NAMES, *TEST_MODEL_NAMES)
"""All models that this package registers with timm."""

# one tag per set of weights: DINOv2 self-supervision on H&E patches, and initial weights of the test models
PRETRAINED_TAG = "dinov2_he"
TEST_TAG = "random"
# "architecture.tag" of the sets that the default organisation has published
PUBLISHED_SETS: frozenset[str] = frozenset()
"""Models whose weights are on the Hub, as NAME.TAG; none yet."""

__all__ = [
    "ALL_MODEL_NAMES",
    "HE_MEAN",
    "HE_STD",
    "MODEL_NAMES",
    "PUBLISHED_SETS",
    "TEST_MODEL_NAMES",
    "TINY_MODEL_NAMES",
]


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "hf_hub_id": f"{organization()}/{name}",
        "num_classes": 0,
        "input_size": (3, 256, 256),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": HE_MEAN,
        "std": HE_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2508.00383",
        "origin_url": "https://arxiv.org/abs/2508.00383",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        **{
            name: _cfg(name)
            for name in (f"{model}.{PRETRAINED_TAG}" for model in MODEL_NAMES + TINY_MODEL_NAMES)
        },
        **{
            name: _cfg(name, input_size=(3, 128, 128))
            for name in (f"{model}.{TEST_TAG}" for model in TEST_MODEL_NAMES)
        },
    }
)
follow(default_cfgs)


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    out_indices = kwargs.pop("out_indices", 3)
    update_registry()
    model_class: Any = HybridVisionTransformer
    if pretrained:
        config = _resolve(variant, kwargs)
        # timm would not verify the file: here it only wraps and describes the filled model
        model_class = PretrainedModel(
            config=config,
            weights=read_pretrained(config, kwargs.get("cache_dir")),
            input_size=_stated_input_size(kwargs),
        )
    return build_model_with_cfg(
        model_class,
        variant,
        pretrained=False,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **{**model_args, **kwargs},
    )


def _resolve(variant: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Merges registered configuration, the one given, and its overlay, as timm does."""
    given, overlay = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
    try:
        return dict(resolve_pretrained_cfg(variant, given, overlay).to_dict())
    except TypeError as error:
        origin = (
            (given or {}).get("file") or (given or {}).get("hf_hub_id") if isinstance(given, dict) else None
        )
        raise CheckpointError(
            f"{origin or variant}: its pretrained configuration holds something that timm does not know ({error}): config.json is "
            "damaged or of a newer timm; copy, download or export it again, or update timm"
        ) from error


def _stated_input_size(kwargs: dict[str, Any]) -> Any:
    """Finds the input size that a file's configuration, which timm passes on, or the caller states."""
    stated = (kwargs.get("pretrained_cfg_overlay"), kwargs.get("pretrained_cfg"))
    found = [config["input_size"] for config in stated if isinstance(config, dict) and "input_size" in config]
    return found[0] if found else None


_SMALL = dict(patch_size=16, embed_dim=384, depth=24, num_heads=6)
_TINY = dict(patch_size=16, embed_dim=192, depth=12, num_heads=3)
_TEST = dict(img_size=128, patch_size=16, embed_dim=64, depth=4, num_heads=2)
_MVHYBRID = dict(ssm_mixer="mambavision", ssm_depth="half", channel_mixer="einfft", pos_embed="none")
_HYDRA_HYBRID = dict(ssm_mixer="hydra", ssm_depth="half", channel_mixer="einfft", pos_embed="none")
_HYDRA_EINFFT = dict(ssm_mixer="hydra", ssm_depth="all", channel_mixer="einfft", pos_embed="none")
_VIM_EINFFT = dict(ssm_mixer="vim", ssm_depth="all", channel_mixer="einfft", pos_embed="learn")
_VIT = dict(ssm_mixer=None, ssm_depth=0, pos_embed="learn", init_values=1e-5)
_TEST_HYDRA = dict(ssm_kwargs=dict(d_state=16, headdim=32))


@register_model
def mvhybrid_small_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """MV_Hybrid: 12 × (MambaVision mixer, EinFFT), then 12 × (attention, MLP); no position embedding."""
    return _create("mvhybrid_small_patch16_256", pretrained, {**_SMALL, **_MVHYBRID}, kwargs)


@register_model
def hydra_hybrid_small_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """Hydra_Hybrid: 12 × (Hydra mixer, EinFFT), then 12 × (attention, MLP); no position embedding.

    The authors published no code of it: this is Hydra at its published defaults within MV_Hybrid.
    """
    return _create("hydra_hybrid_small_patch16_256", pretrained, {**_SMALL, **_HYDRA_HYBRID}, kwargs)


@register_model
def vim_einfft_small_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """ViM_EinFFT: 24 × (Vim mixer, EinFFT) with RMSNorm and a learned position embedding.

    The authors published no code of it: this is Vision Mamba small with EinFFT after its own norm in every block,
    which gives the number of parameters that they report.
    """
    return _create("vim_einfft_small_patch16_256", pretrained, {**_SMALL, **_VIM_EINFFT}, kwargs)


@register_model
def hydra_einfft_small_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """Hydra_EinFFT: 24 × (Hydra mixer, EinFFT); no position embedding.

    The authors published no code of it: this is Hydra at its published defaults within MV_Hybrid.
    """
    return _create("hydra_einfft_small_patch16_256", pretrained, {**_SMALL, **_HYDRA_EINFFT}, kwargs)


@register_model
def vit12_small_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """ViT_12: DINOv2's ViT-S/16 with 12 × (attention, MLP), LayerScale and a learned position embedding."""
    return _create("vit12_small_patch16_256", pretrained, {**_SMALL, **_VIT, "depth": 12}, kwargs)


@register_model
def vit24_small_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """ViT_24: DINOv2's ViT-S/16 with 24 × (attention, MLP), LayerScale and a learned position embedding."""
    return _create("vit24_small_patch16_256", pretrained, {**_SMALL, **_VIT}, kwargs)


@register_model
def mvhybrid_tiny_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """MV_Hybrid of width 192: 6 × (MambaVision mixer, EinFFT), then 6 × (attention, MLP); no position embedding."""
    return _create("mvhybrid_tiny_patch16_256", pretrained, {**_TINY, **_MVHYBRID}, kwargs)


@register_model
def hydra_hybrid_tiny_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """Hydra_Hybrid of width 192: 6 × (Hydra mixer, EinFFT), then 6 × (attention, MLP); no position embedding."""
    return _create("hydra_hybrid_tiny_patch16_256", pretrained, {**_TINY, **_HYDRA_HYBRID}, kwargs)


@register_model
def vim_einfft_tiny_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """ViM_EinFFT of width 192: 12 × (Vim mixer, EinFFT) with RMSNorm and a learned position embedding."""
    return _create("vim_einfft_tiny_patch16_256", pretrained, {**_TINY, **_VIM_EINFFT}, kwargs)


@register_model
def hydra_einfft_tiny_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """Hydra_EinFFT of width 192: 12 × (Hydra mixer, EinFFT); no position embedding."""
    return _create("hydra_einfft_tiny_patch16_256", pretrained, {**_TINY, **_HYDRA_EINFFT}, kwargs)


@register_model
def vit12_tiny_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """ViT_12 of width 192: DINOv2's ViT with 12 × (attention, MLP), LayerScale and a learned position embedding."""
    return _create("vit12_tiny_patch16_256", pretrained, {**_TINY, **_VIT}, kwargs)


@register_model
def vit24_tiny_patch16_256(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """ViT_24 of width 192: DINOv2's ViT with 24 × (attention, MLP), LayerScale and a learned position embedding."""
    return _create("vit24_tiny_patch16_256", pretrained, {**_TINY, **_VIT, "depth": 24}, kwargs)


@register_model
def test_mvhybrid(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """A very small MV_Hybrid for tests."""
    return _create("test_mvhybrid", pretrained, {**_TEST, **_MVHYBRID}, kwargs)


@register_model
def test_hydra_hybrid(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """A very small Hydra_Hybrid for tests."""
    return _create("test_hydra_hybrid", pretrained, {**_TEST, **_HYDRA_HYBRID, **_TEST_HYDRA}, kwargs)


@register_model
def test_vim_einfft(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """A very small ViM_EinFFT for tests."""
    return _create("test_vim_einfft", pretrained, {**_TEST, **_VIM_EINFFT}, kwargs)


@register_model
def test_hydra_einfft(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """A very small Hydra_EinFFT for tests."""
    return _create("test_hydra_einfft", pretrained, {**_TEST, **_HYDRA_EINFFT, **_TEST_HYDRA}, kwargs)


@register_model
def test_vit12(pretrained: bool = False, **kwargs: Any) -> HybridVisionTransformer:
    """A very small ViT with twelve blocks for tests."""
    return _create("test_vit12", pretrained, {**_TEST, **_VIT, "depth": 12}, kwargs)
