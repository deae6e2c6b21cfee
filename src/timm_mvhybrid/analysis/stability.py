"""``analyse stability``: gradients by kind of parameter at the start, and what each block does to the size of tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from tyro.conf import arg

from ..models import HybridVisionTransformer
from ..runtime.errors import EvaluationError, ParameterError
from ..runtime.provenance import collect_provenance
from ..ssl.by_kind import block_measures, gradient_norms, starts_at_zero
from .findings import Curves, Findings, Records
from .options import Advance, AnalysisOptions, silent
from .subjects import Instance, Subject, instances

Start = Literal["zero", "std", "position"]
"""How masked patches start: mask token 0, as published; mask token normal(0, 0.02); 0 and a learned position embedding."""
STARTS: dict[str, dict[str, Any]] = {
    "zero": {"mask_token_std": 0.0},
    "std": {"mask_token_std": 0.02},
    "position": {"mask_token_std": 0.0, "pos_embed": "learn"},
}

_NOTES = (
    "Gradients are those of the sum of the squares of the normalised tokens, half of the rows of patches hidden, by the norms "
    "that clipping sees, in float32: infinite where their squares are too large for it. What another loss gives differs by a "
    "factor; how it grows with the blocks does not.",
    "A mask token of 0 stays exactly 0 through state-space blocks without EinFFT and without position embedding; LayerNorm has "
    "the slope 1/√eps there, and multiplies its gradient in every block. No eigenvalue takes part.",
    "This is the first step of training. It does not show what becomes of a long run.",
)


@dataclass(frozen=True, kw_only=True)
class StabilityOptions(AnalysisOptions):
    """Models, images and what is varied.

    Attributes:
        channel_mixers: Channel mixers to compare on random weights; none for the models as they are.
        depths: Numbers of blocks to compare; by default the model's own.
        starts: How masked patches start: zero, std (0.02), position (0, and a learned position embedding).
    """

    channel_mixers: tuple[Literal["mlp", "none", "einfft"], ...] = ("mlp", "none", "einfft")
    depths: Annotated[tuple[int, ...], arg(metavar="BLOCKS")] = ()
    starts: tuple[Start, ...] = ("zero", "std", "position")

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(depth < 1 for depth in self.depths):
            raise ParameterError(f"`depths` is {self.depths}; they must be at least 1")


def mask_gradients(model: Any, images: Tensor) -> dict[str, float]:
    """Computes gradient norms by kind of parameter with the first half of the rows of patches hidden.

    The loss is the sum of the squares of the normalised tokens.

    Args:
        model: A model of this package, made with ``mask_token=True``; its gradients are cleared.
        images: (batch, 3, height, width), normalised.

    Raises:
        ParameterError: The model has no mask token.
    """
    rows, columns = model.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
    mask = torch.zeros(len(images), rows, columns, dtype=torch.bool)
    mask[:, : rows // 2] = True
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        model.forward_features(images, mask.flatten(1)).square().sum().backward()
    norms = {kind: float(norm) for kind, norm in gradient_norms(model).items()}
    model.zero_grad(set_to_none=True)
    return norms


def analyse_stability(options: StabilityOptions, *, advance: Advance = silent) -> Findings:
    """Measures gradients at the start and the size of tokens after each block.

    Args:
        options: Models, images and what is varied.
        advance: Told of progress.

    Raises:
        EvaluationError: A model is not known, or not one of this package.
        DataError: An image cannot be read.
    """
    subjects, pictures = options.open()
    kinds: list[dict[str, Any]] = []
    blocks: list[dict[str, Any]] = []
    variants: list[dict[str, Any]] = []
    records = []
    size = options.size
    own = [subject.trained + options.seeds for subject in subjects]
    varied = [_variants(subject, options) for subject in subjects]
    total = sum(own) + sum(map(len, varied)) * options.seeds
    done = 0
    for instance in instances(subjects, range(options.seeds), mask_token=True, **size):
        advance(instance.record.label, done, total)
        done += 1
        records.append(instance.record)
        if not isinstance(instance.model, HybridVisionTransformer):
            raise EvaluationError(
                f"model '{instance.subject.label}' is not one of this package, and takes no masks here; leave it out"
            )
        images = pictures.input_of(instance.model, options.image_size_px)
        kinds += [
            {**_named(instance), "kind": kind, "gradient_norm": norm}
            for kind, norm in mask_gradients(instance.model, images).items()
        ]
        blocks += _blocks(instance, images)
    for subject, found in zip(subjects, varied, strict=True):
        for variant in found:
            rows = []
            for seed in range(options.seeds):
                advance(f"{subject.label}, {variant['channel_mixer']}", done, total)
                done += 1
                model: Any = subject.random(seed, **{**variant["arguments"], **size}).model
                images = pictures.input_of(model, options.image_size_px)
                rows.append(mask_gradients(model, images)["mask_token"])
            variants.append(
                {
                    "model": subject.label,
                    "channel_mixer": variant["channel_mixer"],
                    "mask_token": variant["start"],
                    "blocks": len(model.blocks),
                    "stays_zero": str(starts_at_zero(model)).lower(),
                    "mask_token_gradient": float(np.median(rows)),
                    "lowest": float(np.min(rows)),
                    "highest": float(np.max(rows)),
                    "seeds": options.seeds,
                }
            )
    advance("writing", total, total)
    return Findings(
        analysis="stability",
        title="Gradients at the start of training",
        models=records,
        tables=(
            Records(
                name="mask-token",
                caption="Norm of the mask token's gradient at random weights: median, lowest and highest of the seeds.",
                rows=_texts_first(variants),
            ),
            Records(
                name="gradients",
                caption="Norm of the gradient of each kind of parameter, models as given.",
                rows=_texts_first(kinds),
            ),
            Records(
                name="blocks",
                caption="After each block: rms of the tokens; gain of its sequence mixer and of its channel mixer, output over "
                "input.",
                rows=blocks,
                shown=False,
            ),
        ),
        charts=_charts(blocks, variants),
        notes=(*_NOTES, f"Images: {len(pictures.images)}."),
        provenance=collect_provenance(seed=0, options=options, data=pictures.digests),
    )


def _named(instance: Instance) -> dict[str, Any]:
    return {"model": instance.subject.label, "weights": instance.kind, "seed": instance.seed}


def _variants(subject: Subject, options: StabilityOptions) -> list[dict[str, Any]]:
    """Lists what of a subject is varied; nothing of models without state-space blocks."""
    plain = subject.random(0)
    model = plain.model
    if not isinstance(model, HybridVisionTransformer) or not model.has_ssm:
        return []
    depths: list[dict[str, Any]] = [{"depth": depth} for depth in options.depths] or [{}]
    return [
        {
            "channel_mixer": mixer,
            "start": start,
            "arguments": {"channel_mixer": mixer, "mask_token": True, **STARTS[start], **depth},
        }
        for start in options.starts
        for mixer in options.channel_mixers
        for depth in depths
    ]


def _blocks(instance: Instance, images: Tensor) -> list[dict[str, Any]]:
    measured = block_measures(instance.model, lambda: instance.model.forward_features(images))
    found: dict[int, dict[str, float]] = defaultdict(dict)
    ranges = {
        name.replace("/", "_"): value for name, value in measured.items() if name.endswith(("min", "max"))
    }
    for name, value in measured.items():
        what, _, number = name.partition("/")
        if number.isdigit():
            found[int(number)][what] = value
    columns = ("block_rms", "mixer_gain", "channel_gain")
    return [
        {
            **_named(instance),
            "block": number,
            **{column: values.get(column, float("nan")) for column in columns},
            **{
                name: ranges.get(name, float("nan"))
                for name in ("delta_min", "delta_max", "A_log_min", "A_log_max")
            },
        }
        for number, values in sorted(found.items())
    ]


def _texts_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Puts the columns of texts before those of numbers."""
    return [dict(sorted(row.items(), key=lambda item: not isinstance(item[1], str))) for row in rows]


def _charts(blocks: list[dict[str, Any]], variants: list[dict[str, Any]]) -> tuple[Curves, ...]:
    charts = [
        Curves(
            name=name,
            curves=dict(_by_block(blocks, column)),
            x_label="block",
            y_label=label,
            logarithmic=True,
            caption="Random weights by their mean over the seeds.",
        )
        for name, column, label in (
            ("Size of the tokens", "block_rms", "rms after the block"),
            ("Gain of the channel mixers", "channel_gain", "rms out / rms in"),
        )
    ]
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in variants:
        curves[f"{row['model']}, {row['channel_mixer']}, {row['mask_token']}"].append(
            (float(row["blocks"]), row["mask_token_gradient"])
        )
    charts.append(
        Curves(
            name="Gradient of the mask token",
            curves={name: sorted(points) for name, points in curves.items()},
            x_label="blocks",
            y_label="‖gradient‖",
            logarithmic=True,
            caption="Medians over the seeds; infinite values are left out.",
        )
    )
    return tuple(charts)


def _by_block(rows: list[dict[str, Any]], column: str) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[f"{row['model']}, {row['weights']}"][row["block"]].append(row[column])
    for name, points in found.items():
        yield name, [(float(block), float(np.mean(values))) for block, values in sorted(points.items())]
