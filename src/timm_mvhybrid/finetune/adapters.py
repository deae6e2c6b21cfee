"""Low-rank adapters by peft: on layers that are called and nowhere else, merged without loss, saved with their base."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..layers import HydraMixer, MambaVisionMixer, VimMixer
from ..layers.step_size import StepProjection
from ..runtime.atomic_file import write_files
from ..runtime.tensor_digest import tensors_sha256
from ..version import __version__
from .errors import FinetuneError
from .low_rank import speed_up
from .published_folder import folder_of

TARGETS = ("qkv", "attn.proj", "fc1", "fc2", "in_proj", "out_proj")
"""Layers that are adapted by default: the large products of attention, MLPs and state-space mixers."""

WEIGHTS_FILE, CONFIG_FILE, BASE_FILE = "adapter_model.safetensors", "adapter_config.json", "base.json"

_MIXERS = (HydraMixer, MambaVisionMixer, VimMixer)
_HALF = (torch.float16, torch.bfloat16)
# those that leave the base's weights as they are
_INITIALISATIONS = (True, False, "gaussian")


def lora(
    model: nn.Module,
    r: int = 8,
    alpha: float = 16,
    dropout: float = 0.15,
    targets: str | Sequence[str] | None = None,
    **peft: Any,
) -> Any:
    """Adds low-rank adapters to a model, y = W x + (alpha / r) B A x, and freezes all else.

    B starts at 0, so that features are those of the model until something is learned.
    Source: Hu et al. (arXiv 2106.09685); rank and dropout as in SEAL (arXiv 2602.14177), which adapts the last block
    alone and takes alpha 8.

    Args:
        model: A backbone of this package or of timm, or an :class:`~timm_mvhybrid.finetune.STModel`; changed in place.
        r: Rank.
        alpha: The adapter's output is times alpha / r.
        dropout: Dropout before the adapters.
        targets: Names of layers, or the ends of their names after a dot: "qkv", "attn.proj", "blocks.3.mlp.fc1". By
            default the linear layers of attention and MLPs, and ``in_proj`` and ``out_proj`` of the mixers.
        **peft: Further arguments of ``peft.LoraConfig``, such as ``use_rslora`` and ``use_dora``.

    Returns:
        The ``peft.PeftModel``, which computes what the model computes, by the same names.

    Raises:
        FinetuneError: An adapter would change nothing or change the base, or an argument does not fit; the message
            says which and why. The model is as it was.

    Examples:
        >>> import timm, timm_mvhybrid
        >>> adapted = lora(timm.create_model("test_mvhybrid"), r=4)  # doctest: +SKIP
    """
    library = _peft()
    names = _resolve(model, targets, dora=bool(peft.get("use_dora")))
    for name, value, least in (("r", r, 1), ("alpha", alpha, 0)):
        if value < least or isinstance(value, bool):
            raise FinetuneError(f"`{name}` is {value}; it must be at least {least}")
    if not 0 <= dropout < 1:
        raise FinetuneError(f"`dropout` is {dropout}; it must be at least 0 and below 1")
    _check_options(peft)
    needed_gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        config = library.LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, **peft)
    except (TypeError, ValueError) as error:
        raise FinetuneError(f"peft {library.__version__} does not take these arguments: {error}") from error
    own = {id(module) for module in model.modules()}
    adapted = library.get_peft_model(model, config)
    adapted.needed_gradients = needed_gradients
    speed_up(adapted)
    # peft leaves what it adds in training mode, and its dropout on in a model that is evaluated
    for module in adapted.modules():
        if id(module) not in own:
            module.training = model.training
    return adapted


def merge(model: Any) -> nn.Module:
    """Adds what the adapters learned to the weights, in float32, and takes the adapters away.

    A half-width model becomes float32: its own rounding would lose one to two per cent of the features.

    Args:
        model: Of :func:`lora`; it cannot be used afterwards.

    Returns:
        The model that was adapted; parameters need gradients as they did before.

    Raises:
        FinetuneError: The model has no adapters, or what they learned is not finite.
    """
    if not hasattr(model, "merge_and_unload"):
        raise FinetuneError(
            f"`model` is a {type(model).__name__} without adapters; give what `lora` returned"
        )
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in _HALF:
            tensor.data = tensor.data.float()
    try:
        merged: nn.Module = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise FinetuneError(f"the adapters cannot be merged: {error}") from error
    needed_gradients = getattr(model, "needed_gradients", {})
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(needed_gradients.get(name, True))
    return merged


def save_adapters(model: Any, folder: str | Path, *, model_args: Mapping[str, Any] | None = None) -> None:
    """Writes adapters as peft does, and beside them which base they belong to.

    Args:
        model: Of :func:`lora`.
        folder: Made if it is not there; gets ``adapter_model.safetensors``, ``adapter_config.json``, ``base.json``.
        model_args: Options other than the architecture's own that the base was created with, JSON values.

    Raises:
        FinetuneError: The model has no adapters.
        OutputError: The disk does not take the files; none is written.
    """
    library = _peft()
    base = _base(model)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in library.get_peft_model_state_dict(model).items()
    }
    config = model.peft_config["default"].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    sha256 = _base_sha256(model)
    facts = {
        "model": _architecture(base),
        "model_args": dict(model_args or {}),
        "sha256": sha256,
        "timm_mvhybrid_version": __version__,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_files(
        {
            folder / WEIGHTS_FILE: save(weights, {"format": "pt", "base_sha256": sha256}),
            folder / CONFIG_FILE: json.dumps({**config, "inference_mode": True}, indent=2, default=str),
            folder / BASE_FILE: json.dumps(facts, indent=2),
        }
    )


def load_adapters(
    model: nn.Module,
    folder: str | Path,
    *,
    model_args: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
) -> Any:
    """Adds saved adapters to the base that they were trained on.

    Args:
        model: The base, with its weights; changed in place.
        folder: Of :func:`save_adapters`, an exported folder, or ``hf-hub:organisation/name`` of a published one, with
            ``@revision`` after it or not.
        model_args: Options other than the architecture's own that ``model`` was created with.
        cache_dir: Where downloads are kept; None for huggingface_hub's own.

    Returns:
        The ``peft.PeftModel``, in the model's mode, with adapters that can be trained on.

    Raises:
        FinetuneError: The files are missing or damaged, or the model is another base; then it is as it was.
        HubError: They cannot be downloaded.
    """
    library = _peft()
    folder = folder_of(folder, (BASE_FILE, CONFIG_FILE, WEIGHTS_FILE), cache_dir=cache_dir)
    facts, config = (_read_json(folder / name) for name in (BASE_FILE, CONFIG_FILE))
    for key, own in (("model", _architecture(model)), ("model_args", dict(model_args or {}))):
        if facts.get(key) != own:
            raise FinetuneError(
                f"{folder / BASE_FILE}: the adapters belong to a base with {key} {facts.get(key)!r}, but `model` has "
                f"{own!r}; create the base that they name"
            )
    sha256 = _base_sha256(model)
    if facts.get("sha256") != sha256:
        raise FinetuneError(
            f"{folder / BASE_FILE}: the adapters belong to weights with sha256 {facts.get('sha256')}, but those of `model` "
            f"have {sha256}; load the weights that they were trained on"
        )
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # safetensors raises several kinds
        raise FinetuneError(f"{folder / WEIGHTS_FILE}: cannot be read ({error}); copy it again") from error
    kept = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
    adapted = lora(
        model,
        config["r"],
        config["lora_alpha"],
        config["lora_dropout"],
        config["target_modules"],
        **{key: config[key] for key in kept if config.get(key)},
    )
    expected = library.get_peft_model_state_dict(adapted)
    if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in weights.items()}:
        adapted.unload()
        _restore(model, adapted.needed_gradients)
        raise FinetuneError(
            f"{folder / WEIGHTS_FILE}: its tensors are not those that {CONFIG_FILE} describes; copy both again"
        )
    library.set_peft_model_state_dict(adapted, weights)
    return adapted.train(model.training)


def _restore(model: nn.Module, needed_gradients: Mapping[str, bool]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(needed_gradients[name])


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as missing:
        name = missing.name or "peft"
        raise FinetuneError(f"{name} is not installed; pip install 'timm-mvhybrid[finetune]'") from missing
    return peft


def _resolve(model: nn.Module, targets: str | Sequence[str] | None, *, dora: bool) -> list[str]:
    """Finds the layers that targets name, and refuses those on which an adapter would do nothing or harm."""
    if hasattr(model, "peft_config"):
        raise FinetuneError("`model` has adapters already; merge them first")
    modules = dict(model.named_modules())
    wanted = list(TARGETS) if targets is None else [targets] if isinstance(targets, str) else list(targets)
    if "all-linear" in wanted:
        raise FinetuneError(
            "`targets` is 'all-linear', which takes whatever is linear, heads and step sizes too; name the layers, for "
            f"instance {list(TARGETS)}"
        )
    found: set[str] = set()
    for target in wanted:
        names = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not names and targets is not None:
            ends = sorted(
                {name.rpartition(".")[2] for name, m in modules.items() if isinstance(m, nn.Linear)}
            )
            raise FinetuneError(
                f"`targets` has {target!r}, which names no layer; linear layers end in {ends}"
            )
        embedding = [name for name in names if name.endswith("patch_embed.proj")]
        if embedding and not target.endswith("patch_embed.proj"):
            raise FinetuneError(
                f"`targets` has {target!r}, which names {embedding[0]} too, the layer with the largest effect; give "
                f"'attn.{target}', and 'patch_embed.proj' if that is meant"
            )
        found.update(names)
    for name in sorted(found):
        _check_layer(model, modules, name, dora=dora)
    if not found:
        raise FinetuneError(f"`model` has none of the layers {list(TARGETS)}; name its own by `targets`")
    return sorted(found)


def _check_layer(model: nn.Module, modules: Mapping[str, nn.Module], name: str, *, dora: bool) -> None:
    module = modules[name]
    parent = modules[name.rpartition(".")[0]] if "." in name else model
    if isinstance(parent, _MIXERS) and isinstance(module, nn.Conv1d):
        raise FinetuneError(
            f"`targets` names {name}, whose weights the mixer reads without calling it: an adapter would change nothing "
            "and say nothing; leave it out"
        )
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise FinetuneError(
            f"`targets` names {name}, a {type(module).__name__}; adapters go on linear layers and patch embeddings"
        )
    if dora and isinstance(module, StepProjection):
        raise FinetuneError(
            f"`targets` names {name}, whose bias acts inside the scan: `use_dora=True` would take it off a second time; "
            "leave it out, or take use_dora=False"
        )


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuses what would change the base, or could not be merged into it."""
    own = {"target_modules": "targets", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    for name, instead in own.items():
        if name in options:
            raise FinetuneError(f"`{name}` is given as `{instead}`")
    start = options.get("init_lora_weights", True)
    if start not in _INITIALISATIONS:
        raise FinetuneError(
            f"`init_lora_weights` is {start!r}; it must be one of {list(_INITIALISATIONS)}, because others, such as PiSSA "
            "and OLoRA, change the base's weights, which then belong to no checkpoint"
        )
    for name, reason in (
        ("lora_bias", "a bias of its own has no place in a base without one, so it could not be merged"),
        ("target_parameters", "the layers are named by `targets`"),
        ("layer_replication", "it changes the base's depth"),
        ("loftq_config", "it changes the base's weights"),
    ):
        if options.get(name):
            raise FinetuneError(f"`{name}` is {options[name]!r}; it must be left out: {reason}")
    if options.get("bias", "none") != "none":
        raise FinetuneError(
            f"`bias` is {options['bias']!r}; it must be 'none', because others train the base's own biases"
        )


def _base(model: Any) -> nn.Module:
    if not hasattr(model, "get_base_model"):
        raise FinetuneError(
            f"`model` is a {type(model).__name__} without adapters; give what `lora` returned"
        )
    base: nn.Module = model.get_base_model()
    return base


def _architecture(base: Any) -> str:
    inner = getattr(base, "backbone", base)
    found = str((getattr(inner, "pretrained_cfg", None) or {}).get("architecture") or type(inner).__name__)
    return found if inner is base else f"{type(base).__name__}({found})"


def _base_sha256(model: nn.Module) -> str:
    """Computes the sha256 of the weights without adapters, whether there are adapters or not."""
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        # a mask token is pretraining's, and changes no features
        if re.search(r"\.lora_|\.modules_to_save\.|(?:^|\.)mask_token$", name):
            continue
        plain = name.removeprefix("base_model.model.")
        weights[re.sub(r"\.(?:base_layer|original_module)\.", ".", plain)] = tensor
    return tensors_sha256(weights)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FinetuneError(
            f"{path}: cannot be read ({error}); give the folder that `save_adapters` wrote, or copy it again"
        ) from error
    if not isinstance(found, dict):
        raise FinetuneError(f"{path}: holds no JSON object; copy it again")
    return found
