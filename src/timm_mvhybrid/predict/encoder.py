"""The model whose features a predictor takes: its record → the same model with the same weights, or a refusal."""

from __future__ import annotations

from pathlib import Path

from ..embed.backbone import Backbone, load_backbone
from ..embed.embedding_cache import EmbeddingOptions, weights_digest
from .errors import PredictorError
from .expression_predictor import ExpressionPredictor
from .prediction import EncoderRecord

_FOLDER = "local-dir:"


def encoder_of(predictor: ExpressionPredictor) -> EncoderRecord:
    """Takes the record of a predictor's model.

    Raises:
        PredictorError: There is none, or it does not say which patches the model saw.
    """
    encoder = predictor.encoder_
    if encoder is None:
        raise PredictorError(
            "the predictor does not say which model its features are of; fit it with `encoder`, as the command does"
        )
    if encoder.patch_size_px is None or encoder.resolution_um_per_px is None:
        raise PredictorError(
            "the predictor does not say the size and resolution of its patches; fit it on patches that state them"
        )
    return encoder


def load_encoder_of(predictor: ExpressionPredictor, checkpoint: str | Path | None = None) -> Backbone:
    """Builds the model of a predictor, and makes sure of its weights.

    Args:
        predictor: A fitted predictor.
        checkpoint: File of the weights, or exported folder, where they came from one.

    Raises:
        PredictorError: The weights are others than those that the predictor was fitted on, or their file is needed.
        EvaluationError: As in ``load_backbone``.
    """
    record = encoder_of(predictor)
    if checkpoint is None and (
        record.name.startswith(_FOLDER) or record.weights not in ("random", "pretrained")
    ):
        kind = "folder" if record.name.startswith(_FOLDER) else "file"
        raise PredictorError(
            f"the predictor was fitted on the {kind} {record.name.removeprefix(_FOLDER) if kind == 'folder' else record.weights} "
            f"(sha256 {record.weights_sha256[:12]}…); give that {kind} with `checkpoint={kind.upper()}`"
        )
    if checkpoint is None:
        is_random = record.weights == "random"
        backbone = load_backbone(record.name, pretrained=not is_random, seed=record.seed or 0)
    elif Path(checkpoint).is_dir():
        backbone = load_backbone(f"{_FOLDER}{checkpoint}", pretrained=True)
    else:
        backbone = load_backbone(record.name, checkpoint=checkpoint)
    check_weights(
        record, backbone, "the weights of" if checkpoint is None else f"{checkpoint}: the weights of"
    )
    return backbone


def check_weights(record: EncoderRecord, backbone: Backbone, subject: str = "the weights of") -> None:
    """Refuses another model, or other weights, than those that a predictor was fitted on.

    Raises:
        PredictorError: They are others.
    """
    # folders may lie elsewhere today; their weights are what counts
    in_folders = any(name.startswith(_FOLDER) for name in (backbone.name, record.name))
    if backbone.name != record.name and not in_folders:
        raise PredictorError(
            f"the predictor was fitted on features of {record.name}, not of {backbone.name}; give that model"
        )
    digest = weights_digest(backbone)
    if digest != record.weights_sha256:
        raise PredictorError(
            f"{subject} {record.name} have the sha256 {digest[:12]}…, and the predictor was fitted on "
            f"{record.weights_sha256[:12]}… ({record.weights}); give those with `checkpoint=FILE`"
        )


def embedding_options(
    record: EncoderRecord, *, batch_size: int, device: str, num_workers: int, cache: Path | None
) -> EmbeddingOptions:
    """Takes over from the record how patches become features; the rest is this machine's business."""
    transform = record.transform
    sides: list[int] = list(transform.get("input_size_px", ()))
    return EmbeddingOptions(
        batch_size=batch_size,
        device=device,
        num_workers=num_workers,
        cache=cache,
        pool=transform.get("global_pool", "model"),
        dtype=transform.get("dtype", "float32"),
        input_size=int(sides[0]) if len(set(sides)) == 1 else "auto",
    )
