"""slide2vec: the six backbones as its tile encoders, found without an import of this package.

    from slide2vec import Model

    embedded = Model.from_preset("mvhybrid_small_patch16_256").embed_slide("slide.svs")

slide2vec calls ``register`` by the entry-point group ``slide2vec.encoders``; weights are the published ones. Your own
weights become a further preset, in every process that uses it:

    from timm_mvhybrid.integrations.slide2vec import register_checkpoint

    register_checkpoint("my_mvhybrid", "weights.safetensors", "mvhybrid_small_patch16_256")

Tiles, dense grids and pre-norm grids work for all six; attention maps for blocks that have attention. With
``output_variant="cls_patch_mean"`` the mean of the patch tokens follows the class token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ..models import MODEL_NAMES, load_weights
from ..runtime.digest import file_sha256
from ..runtime.errors import ParameterError
from .encoder import MissingWeightsError, pipeline_module

RESOLUTION_UM_PER_PX = 0.5


def register() -> None:
    """Adds the six backbones to slide2vec's encoders, each under its timm name; slide2vec calls this itself.

    Raises:
        MissingPackageError: slide2vec is not installed.
    """
    for name in MODEL_NAMES:
        _register(name, name, source=str(timm.get_pretrained_cfg(name).hf_hub_id), options={})


def register_checkpoint(
    preset: str, checkpoint: str | Path, model_name: str = "mvhybrid_small_patch16_256", **model_args: Any
) -> None:
    """Adds a preset with weights from a file to slide2vec's encoders in this process.

    The file's sha256 becomes the encoder's source, which slide2vec records: features of other weights are never
    mistaken for these when a run is resumed. Processes that slide2vec starts for several GPUs do not have the preset.

    Args:
        preset: Its name, in lower case, as for ``Model.from_preset``.
        checkpoint: Any file that ``timm_mvhybrid.models.load_weights`` takes.
        model_name: The timm name of the model that the file belongs to.
        **model_args: What the model was trained with, for instance ``ssm_depth=6``.

    Raises:
        MissingPackageError: slide2vec is not installed.
        ParameterError: The preset's name is not in lower case, or an argument changes the pooling.
        ValueError: By slide2vec, if the name is taken.
        MissingWeightsError: There is no such file.
    """
    path = Path(checkpoint)
    if preset != preset.strip().lower():
        raise ParameterError(
            f"`preset` is '{preset}', and slide2vec looks for '{preset.strip().lower()}'; name it so"
        )
    if not path.is_file():
        raise MissingWeightsError(f"{path}: no such checkpoint file; check the path")
    source = f"{model_name} {path.name} sha256:{file_sha256(path)}"
    _register(preset, model_name, source=source, options=model_args, checkpoint=path)


def _register(
    preset: str, model_name: str, *, source: str, options: dict[str, Any], checkpoint: Path | None = None
) -> None:
    encoders = pipeline_module("slide2vec.encoders", "TimmTileEncoder", "pip install 'slide2vec>=7.1'")
    base: type[Any] = encoders.TimmTileEncoder
    plan = timm.create_model(model_name, num_classes=0, device=torch.device("meta"), **options)
    if plan.global_pool != "token":
        raise ParameterError(
            f"`global_pool` is {plan.global_pool!r}; presets give the class token: leave it out, and choose by "
            "`output_variant`"
        )
    places, depth, dim = plan.ssm_places, len(plan.blocks), plan.num_features
    attention = [index for index, ssm in enumerate(places) if not ssm]
    dims = {"cls": dim, "cls_patch_mean": 2 * dim}

    class Encoder(base):
        def __init__(self, *, output_variant: str | None = None) -> None:
            self._output_variant = output_variant or "cls"
            if self._output_variant not in dims:
                raise ParameterError(
                    f"`output_variant` is {output_variant!r}; allowed are {', '.join(map(repr, dims))}"
                )
            super().__init__(model_name, pretrained=checkpoint is None, **options)
            if checkpoint is not None:
                load_weights(self._model, checkpoint)

        @property
        def encode_dim(self) -> int:
            return dims[self._output_variant]

        def encode_tiles(self, batch: Tensor) -> Tensor:
            tokens = self._model.forward_features(batch)
            if self._output_variant == "cls":
                return tokens[:, 0]
            patches = tokens[:, self._model.num_prefix_tokens :]
            return torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1)

        def encode_tiles_attention(
            self, batch: Tensor, *, blocks: tuple[int, ...] = (-1,), include_registers: bool = False
        ) -> Tensor:
            scans = [block for block in blocks if -depth <= block < depth and places[block]]
            if scans:
                one_piece = attention == list(range(attention[0], attention[-1] + 1))
                which = f"{attention[0]} to {attention[-1]}" if one_piece else ", ".join(map(str, attention))
                raise ParameterError(
                    f"`attention_blocks` names {', '.join(map(str, scans))}; of the {depth} blocks of {model_name} "
                    f"{sum(places)} are state-space blocks, which have no attention: choose from {which}"
                )
            return super().encode_tiles_attention(batch, blocks=blocks, include_registers=include_registers)

    if not attention:
        # slide2vec takes a method as unsupported if it is the base class's own
        setattr(Encoder, "encode_tiles_attention", encoders.TileEncoder.encode_tiles_attention)  # noqa: B010  (a method, to mypy)
    Encoder.__name__ = Encoder.__qualname__ = f"Encoder[{preset}]"
    encoders.register_encoder(
        preset,
        output_variants={variant: {"encode_dim": size} for variant, size in dims.items()},
        default_output_variant="cls",
        input_size=timm.data.resolve_data_config({}, model=plan)["input_size"][-1],
        supports_variable_input_size=True,
        patch_size=tuple(plan.patch_embed.patch_size),
        supported_spacing_um=RESOLUTION_UM_PER_PX,
        precision="fp32",
        source=source,
    )(Encoder)
