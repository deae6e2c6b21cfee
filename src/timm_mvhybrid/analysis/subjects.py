"""What is analysed: names, checkpoints, folders → models with weights, and the same architectures with random ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..embed.backbone import Backbone, load_backbone
from ..runtime.errors import EvaluationError
from ..runtime.provenance import ModelRecord


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is analysed, once with its weights, or once a seed with random ones.

    Attributes:
        label: Names it, unique within an analysis.
        name: Architecture, or address, as timm takes it.
        arguments: Further arguments of the model.
        checkpoint: Its weights; None for those of the address, or random ones.
        trained: Whether it has weights of its own.
        architecture: What its random twins are made of.
    """

    label: str
    name: str
    arguments: Mapping[str, Any]
    checkpoint: Path | None
    trained: bool
    architecture: tuple[str, Mapping[str, Any]]

    def load(self, **more: Any) -> Backbone:
        """Builds the model with its weights."""
        return load_backbone(
            self.name,
            pretrained=self.trained and self.checkpoint is None,
            checkpoint=self.checkpoint,
            **{**self.arguments, **more},
        )

    def random(self, seed: int, **more: Any) -> Backbone:
        """Builds the same architecture with random weights."""
        name, arguments = self.architecture
        return load_backbone(name, seed=seed, **{**arguments, **more})


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One set of weights.

    Attributes:
        subject: Whose.
        kind: ``trained`` or ``random``.
        seed: Seed of random weights; −1 for trained ones.
        model: The model, in evaluation mode, on the CPU.
        record: What stands in results.
    """

    subject: Subject
    kind: str
    seed: int
    model: Any
    record: ModelRecord

    @property
    def series(self) -> str:
        """Names the curve that it belongs to."""
        return f"{self.subject.label}, {self.kind}"


def find_subject(given: str, arguments: Mapping[str, Any] | None = None) -> Subject:
    """Understands how a model was named.

    Args:
        given: A name that timm knows (random weights); ``NAME=FILE``, an architecture and its checkpoint; the folder of an
            export, or ``local-dir:`` or ``hf-hub:`` before an address; the folder of a run of this package.
        arguments: Further arguments of the model, for names and ``NAME=FILE``; folders state their own.

    Raises:
        EvaluationError: It is none of these; the message says what is missing.
    """
    own = dict(arguments or {})
    path = Path(given)
    if given.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        if given.startswith("local-dir:"):
            return _exported(Path(given.partition(":")[2]))
        name = given.split(":")[1].split("@")[0].rpartition("/")[2]
        return _subject(name, given, {}, None, (name.partition(".")[0], own), trained=True)
    if path.is_dir():
        config = _config(path)
        return _exported(path) if "architecture" in config else _run(path, config)
    if "=" in given:
        name, _, file = given.partition("=")
        if not Path(file).is_file():
            raise EvaluationError(f"{file}: no such file; give a checkpoint as NAME=FILE")
        return _subject(f"{name} ({Path(file).name})", name, own, Path(file), (name, own), trained=True)
    if path.is_file():
        raise EvaluationError(
            f"{given}: a file does not say which architecture it is of; give NAME={given}, or the folder of its export or run"
        )
    return _subject(given, given, own, None, (given, own), trained=False)


def instances(subjects: Sequence[Subject], seeds: Sequence[int], **more: Any) -> Iterator[Instance]:
    """Builds all sets of weights, one after the other: what is trained, then random twins of each architecture.

    Args:
        subjects: The models.
        seeds: Seeds of random weights.
        **more: Further arguments of all models.
    """
    for subject in subjects:
        if subject.trained:
            yield _instance(subject, "trained", -1, subject.load(**more))
        for seed in seeds:
            yield _instance(subject, "random", seed, subject.random(seed, **more))


def _instance(subject: Subject, kind: str, seed: int, backbone: Backbone) -> Instance:
    label = subject.label if kind == "trained" else f"{subject.label}, random {seed}"
    model: nn.Module = backbone.model
    record = ModelRecord(
        label=label,
        name=backbone.name,
        weights=backbone.weights,
        weights_sha256=backbone.weights_sha256,
        embedding_dim=int(getattr(model, "num_features", 0)),
    )
    return Instance(subject=subject, kind=kind, seed=seed, model=model, record=record)


def _subject(
    label: str,
    name: str,
    arguments: Mapping[str, Any],
    checkpoint: Path | None,
    architecture: tuple[str, Mapping[str, Any]],
    *,
    trained: bool,
) -> Subject:
    return Subject(
        label=label,
        name=name,
        arguments=arguments,
        checkpoint=checkpoint,
        trained=trained,
        architecture=architecture,
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{folder}: holds no readable config.json ({error}); give the folder of an export or of a run"
        ) from error
    if not isinstance(found, dict):
        raise EvaluationError(f"{folder / 'config.json'}: must hold an object; is it damaged?")
    return found


def _exported(folder: Path) -> Subject:
    config = _config(folder)
    architecture = str(config.get("architecture", "")), dict(config.get("model_args") or {})
    label = f"{architecture[0]} ({folder.resolve().name})"
    return _subject(label, f"local-dir:{folder}", {}, None, architecture, trained=True)


def _run(folder: Path, config: Mapping[str, Any]) -> Subject:
    model = config.get("model")
    weights = folder / "teacher.safetensors"
    if not isinstance(model, dict) or not weights.is_file():
        raise EvaluationError(
            f"{folder}: neither an export nor a finished run of pretraining (config.json and teacher.safetensors); export a "
            "checkpoint with 'timm-mvhybrid export', or give NAME=FILE"
        )
    name = str(model.get("name"))
    # the mask token is pretraining's alone, and not in these weights
    arguments = {
        key: value
        for key, value in (model.get("arguments") or {}).items()
        if not key.startswith("mask_token")
    }
    size = (config.get("crops") or {}).get("global_size_px")
    if size is not None:
        arguments.setdefault("img_size", size)
    label = f"{name} ({folder.resolve().name})"
    return _subject(label, name, arguments, weights, (name, arguments), trained=True)


def check_labels(subjects: Sequence[Subject]) -> None:
    """Raises EvaluationError where two subjects cannot be told apart."""
    labels = [subject.label for subject in subjects]
    for label in labels:
        if labels.count(label) > 1:
            raise EvaluationError(f"model '{label}' is given twice; leave one out")
