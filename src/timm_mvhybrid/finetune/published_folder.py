"""What is loaded by a name on the Hub or a folder on this machine → the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..weights.hub_download import download

_PREFIXES = ("hf-hub:", "hf_hub:")


def folder_of(source: str | Path, names: Sequence[str], *, cache_dir: str | Path | None = None) -> Path:
    """Downloads files of a repository, all of one commit, or takes a folder as it is.

    Args:
        source: A folder, or ``hf-hub:organisation/name`` with ``@revision`` after it or not.
        names: Files to download.
        cache_dir: The cache; None for huggingface_hub's own.

    Returns:
        The folder that holds them.

    Raises:
        HubError: A file cannot be downloaded, and is not in the cache.
    """
    text = str(source)
    if not text.startswith(_PREFIXES):
        return Path(text.removeprefix("local-dir:"))
    repo, _, revision = text[len(_PREFIXES[0]) :].partition("@")
    first, *others = names
    folder = download(repo, first, revision=revision or None, cache_dir=cache_dir).parent
    for name in others:
        download(repo, name, revision=folder.name, cache_dir=cache_dir)
    return folder
