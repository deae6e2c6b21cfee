"""timm's pretrained configuration → the verified file that it names → a model with these weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models._hub import download_cached_file

from ..weights.errors import CheckpointError
from ..weights.hub_download import HubError, MissingFileError, download
from ..weights.weights_file import COPY_AGAIN, WeightsFile, read_weights
from .hybrid_vision_transformer import HybridVisionTransformer
from .loading import CONFIG_FILE, WEIGHTS_FILE, fill, stated_sha256

# timm's order of preference
_FILE_NAMES = (WEIGHTS_FILE, "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".bin")


@dataclass(frozen=True, kw_only=True)
class PretrainedModel:
    """Builds models with the weights that a configuration names; takes the place of the model's class in timm.

    Attributes:
        config: timm's pretrained configuration.
        weights: What ``read_pretrained`` found for it.
        input_size: Channels, height and width in px that the weights' own configuration, or the caller, states.
    """

    config: Mapping[str, Any]
    weights: WeightsFile
    input_size: Sequence[int] | None = None

    def __call__(self, **options: Any) -> HybridVisionTransformer:
        """Builds a model and fills it.

        Raises:
            CheckpointError: The weights do not fit it.
        """
        model = HybridVisionTransformer(**options)
        # where nothing else states the grid of a position embedding, it is read from here
        model.pretrained_cfg = dict(self.config)
        # timm keeps a new head where the number of classes is not the configuration's
        new_head = model.num_classes != self.config.get("num_classes")
        fill(model, self.weights, new_head=new_head, input_size=self.input_size)
        model.weights_sha256 = self.weights.sha256
        return model


def read_pretrained(config: Mapping[str, Any], cache_dir: str | Path | None = None) -> WeightsFile:
    """Finds, downloads if necessary, and verifies the weights that a configuration names.

    Args:
        config: timm's pretrained configuration, resolved.
        cache_dir: Cache of downloads; None for huggingface_hub's and torch's own.

    Raises:
        CheckpointError: There are none, they cannot be had, or they are not what was exported.
    """
    source = config.get("source")
    if source == "local-dir":
        return _from_folder(Path(config["file"]))
    if source != "hf-hub":
        if config.get("state_dict"):
            return WeightsFile(path=Path("state_dict"), sha256="unknown", checkpoint=config["state_dict"])
        if config.get("file"):
            return _from_file(Path(config["file"]))
        if not config.get("hf_hub_id") and config.get("url"):
            return _from_url(str(config["url"]), cache_dir)
    if not config.get("hf_hub_id"):
        raise CheckpointError(
            f"No pretrained weights exist for {config.get('architecture')}; give your own with "
            "pretrained_cfg_overlay=dict(file='weights.safetensors')"
        )
    try:
        return _from_hub(str(config["hf_hub_id"]), config.get("hf_hub_filename"), cache_dir)
    except HubError as error:
        if source == "hf-hub":
            raise
        name = config.get("architecture")
        raise type(error)(
            f"no pretrained weights of {name} could be loaded: {error}. Where none are published yet, pretrain with "
            f"'timm-mvhybrid pretrain', then run 'timm-mvhybrid export --checkpoint RUN --model {name} --output "
            f"DIR' and 'timm-mvhybrid publish DIR --repo {config['hf_hub_id']}'"
        ) from error


def _from_file(path: Path) -> WeightsFile:
    """Reads a plain file, and compares it with the configuration beside it where it was exported with one."""
    config = path.parent / CONFIG_FILE
    return read_weights(path, sha256=stated_sha256(config, path.name), stated_in=str(config))


def _from_folder(folder: Path) -> WeightsFile:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the one that 'timm-mvhybrid export' wrote")
    return _from_file(find_weights(folder))


def find_weights(folder: Path) -> Path:
    """Chooses the weights file of a folder, as timm does.

    Raises:
        CheckpointError: There is none.
    """
    named = [folder / name for name in _FILE_NAMES if (folder / name).is_file()]
    others = [path for suffix in _SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    if not named and not others:
        raise CheckpointError(f"{folder}: holds no {WEIGHTS_FILE}; {COPY_AGAIN}")
    return (named or others)[0]


def _from_url(url: str, cache_dir: str | Path | None) -> WeightsFile:
    try:
        path = download_cached_file(url, check_hash=False, cache_dir=cache_dir)
    except OSError as error:
        raise HubError(f"{url}: cannot be downloaded ({error}); check address and network") from error
    return read_weights(path, remedy=f"delete it, so that it is downloaded again from {url}")


def _from_hub(identifier: str, filename: str | None, cache_dir: str | Path | None) -> WeightsFile:
    """Downloads configuration and weights of one commit, and compares them."""
    repo_id, _, revision = identifier.partition("@")
    sha256, config = None, None
    try:
        config = download(repo_id, CONFIG_FILE, revision=revision or None, cache_dir=cache_dir)
        revision = config.parent.name
    except MissingFileError:
        # a repository that another program filled; its weights can still be checked by themselves
        pass
    path = _download_weights(repo_id, filename, revision or None, cache_dir)
    if config is not None:
        sha256 = stated_sha256(config, path.name)
    force = f"hf_hub_download('{repo_id}', '{path.name}', force_download=True)"
    remedy = f"replace the cached copy: huggingface_hub.{force}"
    return read_weights(path, sha256=sha256, stated_in=f"{CONFIG_FILE} of {repo_id}", remedy=remedy)


def _download_weights(
    repo_id: str, filename: str | None, revision: str | None, cache_dir: str | Path | None
) -> Path:
    if filename is not None:
        return download(repo_id, filename, revision=revision, cache_dir=cache_dir)
    try:
        return download(repo_id, WEIGHTS_FILE, revision=revision, cache_dir=cache_dir)
    except MissingFileError as error:
        try:
            return download(repo_id, "pytorch_model.bin", revision=revision, cache_dir=cache_dir)
        except MissingFileError:
            raise error from error.__cause__
