"""A checkpoint → a folder that timm loads and the Hub takes: configuration, weights, model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from ..models import ALL_MODEL_NAMES
from ..models.hybrid_vision_transformer import HybridVisionTransformer
from ..models.loading import CONFIG_FILE, CONFIG_SECTION, WEIGHTS_FILE
from ..runtime.atomic_file import claimed
from ..runtime.atomic_folder import OutputFolder
from ..runtime.digest import file_sha256
from ..runtime.tensor_digest import tensors_sha256
from ..version import __version__
from ..weights.errors import CheckpointError
from ..weights.fingerprint import Fingerprint, relative_error
from ..weights.key_conversion import Branch
from ..weights.position_grid import PATCH_GRID, grid_of, grid_to_text
from ..weights.weights_file import FINGERPRINT, TENSORS_SHA256, check_finite
from .companions import COMPANIONS, read_companions
from .errors import ExportError
from .evaluations import read_rows, weights_of_run
from .model_card import write_card
from .output_folder import check_folder
from .run_records import read_run_records
from .training_checkpoint import TrainingCheckpoint, convert, read_training_checkpoint, run_config
from .verify import verify

CARD_FILE = "README.md"
FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
Dtype = Literal["float32", "bfloat16"]
# relative norm of the difference that rounding to bfloat16 may make to the features of the synthetic image
BFLOAT16_BOUND = 0.02


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What was exported.

    Args:
        output: The folder.
        model: Architecture.
        tag: Name of this set of weights.
        dtype: Type of the stored matrices.
        branch: "teacher" or "student"; None where the checkpoint knew no such thing.
        checkpoint: What was read.
        sha256: sha256 of the weights file, in hex.
        rounding_error: Relative norm by which bfloat16 changed the features of the synthetic image; 0 for float32.
        num_parameters: Number of parameters.
    """

    output: str
    model: str
    tag: str
    dtype: str
    branch: str | None
    checkpoint: str
    sha256: str
    rounding_error: float
    num_parameters: int


def export(
    checkpoint: str | Path,
    model: str | None,
    output: str | Path,
    *,
    dtype: Dtype = "float32",
    branch: Branch = "teacher",
    tag: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    results: Sequence[str | Path] = (),
    overwrite: bool = False,
) -> ExportSummary:
    """Exports a backbone into a folder in timm's local-dir format.

    In bfloat16 the matrices are rounded; vectors (norms, biases, ``D``, LayerScale) and ``A_log`` stay float32, which
    lowers the error of most models for 0.5 to 5 % of the size. What is written is loaded again and verified before it appears.
    Of a run that fine-tuned an encoder the ST token and heads, or the adapters, lie beside it.

    Args:
        checkpoint: A run, a sharded checkpoint, an exported folder, or a file; of the official repository, too.
        model: A model of this package; None takes that of the run, with its options.
        output: Folder to write; complete or absent, never half.
        dtype: Type of the stored matrices.
        branch: Whose weights to take where there are a teacher's and a student's.
        tag: Name of this set of weights; None for the registered one.
        model_args: Options that the model was trained with, JSON values (``ssm_depth``, ``init_values``, ...).
        run: Folder with the run's records; None to look where the checkpoint lies.
        results: Reports of evaluations, folders or their results.json, whose scores go into the model card beside those
            that the run keeps; each must be of these weights.
        overwrite: Whether an earlier export may be replaced.

    Returns:
        What was exported.

    Raises:
        CheckpointError: The checkpoint is damaged, not finite or does not cover the model; the output may not be
            replaced; or bfloat16 would change the features by more than 2 %.
        OutputError: The disk does not take the output, or another process writes it.
    """
    output = Path(output).absolute()
    check_folder(output, overwrite=overwrite, known_files=(*FILES, *COMPANIONS))
    options = _json_options(model_args or {})
    if model is None:
        model, found = _model_of(Path(checkpoint if run is None else run))
        options = {**found, **options}
    network = _build(model, options)
    source = read_training_checkpoint(checkpoint, branch)
    state = convert(source, network)
    check_finite(state, source.path)
    network.load_state_dict(state)
    folder_of_run = Path(run) if run is not None else source.run
    weights = _same_weights(source, folder_of_run, network)
    records = read_run_records(folder_of_run, source.step, weights)
    records = replace(
        records, evaluations=(*records.evaluations, *read_rows([Path(file) for file in results], weights))
    )
    tag = tag or str(network.pretrained_cfg["tag"])
    stored = {key: value.contiguous() for key, value in network.state_dict().items()}
    rounding_error, bfloat16 = 0.0, ""
    if dtype == "bfloat16":
        stored = {key: _round(key, value) for key, value in stored.items()}
        rounded = _build(model, options)
        rounded.load_state_dict(stored)
        rounding_error = relative_error(rounded, network)
        if not rounding_error <= BFLOAT16_BOUND:
            raise ExportError(
                f"{source.path}: bfloat16 would change the features by {rounding_error:.1%}, and {BFLOAT16_BOUND:.0%} is "
                "allowed; export with `dtype='float32'`"
            )
        network = rounded
        bfloat16 = (
            " (vectors and A_log in float32); on the fixed image the features differ from those of the float32 weights by "
            f"{rounding_error:.2g} in relative norm, {BFLOAT16_BOUND:.0%} is the bound"
        )
    metadata = {
        "format": "pt",
        "model": model,
        "tag": tag,
        "timm_mvhybrid_version": __version__,
        "dtype": dtype,
        "branch": source.branch or "not stated",
        "source_sha256": source.sha256,
        "bfloat16_error": f"{rounding_error:.3g}",
        "bfloat16_bound": str(BFLOAT16_BOUND),
        PATCH_GRID: grid_to_text(grid_of(network)),
        "model_args": json.dumps(options, sort_keys=True),
        TENSORS_SHA256: tensors_sha256(stored),
        FINGERPRINT: Fingerprint.of(network).to_json(),
    }
    companions = read_companions(source.path, stored)
    with claimed(output), OutputFolder(output, replace=overwrite) as folder:
        sha256 = file_sha256(folder.add(WEIGHTS_FILE, save(stored, metadata=metadata)))
        files = {name: file_sha256(folder.add(name, content)) for name, content in companions.items()}
        folder.add(CONFIG_FILE, _config(network, model, tag, options, dtype, sha256, files))
        card = write_card(
            f"{model}.{tag}",
            network,
            records,
            source=source,
            model_args=options,
            dtype=dtype,
            bfloat16=bfloat16,
            sha256=sha256,
            companions=tuple(files),
        )
        folder.add(CARD_FILE, card)
        verify(folder.folder)
        folder.finish()
    return ExportSummary(
        output=str(output),
        model=model,
        tag=tag,
        dtype=dtype,
        branch=source.branch,
        checkpoint=str(source.path),
        sha256=sha256,
        rounding_error=rounding_error,
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


def _same_weights(source: TrainingCheckpoint, run: Path | None, network: HybridVisionTransformer) -> set[str]:
    """Finds the files that hold what is exported: the source, and those of the run's whose tensors are equal."""
    same = {source.sha256}
    ours = network.state_dict()
    for sha256, file in ({} if run is None else weights_of_run(run)).items():
        try:
            theirs = convert(read_training_checkpoint(file), network)
        except CheckpointError:
            continue
        if all(torch.equal(value, ours[name]) for name, value in theirs.items()):
            same.add(sha256)
    return same


def _model_of(run: Path) -> tuple[str, dict[str, Any]]:
    """Reads from a run's configuration which model it trained, and with which options.

    Raises:
        ExportError: There is no such configuration.
    """
    config = run_config(run if run.is_dir() else run.parent)
    try:
        name, options = str(config["model"]["name"]), dict(config["model"]["arguments"])
        size = int(config["crops"]["global_size_px"])
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{run}: is not a run that says which model it trained; name it by `model=NAME`"
        ) from error
    network = _build(name, {**options, "img_size": options.get("img_size", size)})
    # stated only where it is not the architecture's own
    if tuple(network.patch_embed.img_size) != tuple(network.default_cfg["input_size"][1:]):
        options.setdefault("img_size", size)
    return name, options


def _build(model: str, options: Mapping[str, Any]) -> HybridVisionTransformer:
    """Builds the backbone without drawing from the caller's random numbers."""
    name = model.split(".")[0]
    if name != model or name not in ALL_MODEL_NAMES:
        raise ExportError(f"'{model}' is not a model of this package; 'timm-mvhybrid models' lists them")
    try:
        with torch.random.fork_rng(devices=[]):
            network: Any = timm.create_model(model, **{"num_classes": 0, **options})
    except (TypeError, ValueError, AssertionError) as error:
        raise ExportError(f"{model} cannot be built with {json.dumps(dict(options))}: {error}") from error
    if network.num_classes != 0 or network.patch_embed.proj.in_channels != 3:
        raise ExportError(
            "a backbone is exported without classifier and for RGB; leave num_classes and in_chans out"
        )
    return network.eval()


def _json_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Copies model options as JSON would give them back."""
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(options)))
    except TypeError as error:
        raise ExportError(f"model options must be JSON values ({error})") from error
    return copied


def _round(name: str, tensor: Tensor) -> Tensor:
    """Rounds a matrix to bfloat16; vectors and the eigenvalues (A_log, A_imag, and those of Vim with _b) are kept."""
    keep = tensor.ndim <= 1 or name.endswith(("A_log", "A_b_log", "A_imag", "A_b_imag"))
    return tensor if keep else tensor.to(torch.bfloat16)


def _config(
    network: HybridVisionTransformer,
    model: str,
    tag: str,
    options: Mapping[str, Any],
    dtype: str,
    sha256: str,
    files: Mapping[str, str],
) -> str:
    """Writes ``config.json`` as timm reads it, with a section of our own that timm passes over."""
    sources = (
        "url",
        "file",
        "hf_hub_id",
        "hf_hub_filename",
        "source",
        "state_dict",
        "architecture",
        "custom_load",
    )
    pretrained_cfg = {key: value for key, value in network.pretrained_cfg.items() if key not in sources}
    if "img_size" in options:
        pretrained_cfg["input_size"] = [3, *network.patch_embed.img_size]
    config: dict[str, Any] = {
        "architecture": model,
        "num_classes": 0,
        "num_features": network.num_features,
        "global_pool": network.global_pool,
    }
    if options:
        config["model_args"] = dict(options)
    config["pretrained_cfg"] = {**pretrained_cfg, "tag": tag, "num_classes": 0}
    config[CONFIG_SECTION] = {
        "version": __version__,
        "weights": {"file": WEIGHTS_FILE, "sha256": sha256, "dtype": dtype},
        **({"files": dict(files)} if files else {}),
    }
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
