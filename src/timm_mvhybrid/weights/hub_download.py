"""Repository and file name → the file in the local cache, or an error that says what failed and what to do."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub import get_token as get_hub_token
from huggingface_hub.utils import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..runtime.errors import OutputError, is_of_the_disk
from ..version import __version__
from .errors import CheckpointError

_logger = logging.getLogger(__name__)

# huggingface_hub has used each of them
_TRANSPORTS = ("requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2")


class HubError(CheckpointError):
    """A download or upload that failed; the message says what, why, and what to do."""


class MissingFileError(HubError):
    """The repository exists but does not hold the file."""


class NotPublishedError(HubError):
    """The repository does not exist, or the Hub does not show it to this user."""


def download(
    repo_id: str, filename: str, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """Fetches a file of a repository into huggingface_hub's cache.

    One request asks whether the cached file is current. Without network, or if the server fails, a cached file is taken
    at once, and if there is none that is an error at once.

    Args:
        repo_id: "organisation/name".
        filename: The file's path in the repository.
        revision: Branch, tag or commit; None for the main branch.
        cache_dir: The cache; None for huggingface_hub's own.

    Returns:
        The file in the cache. Its parent folder has the commit's name.

    Raises:
        HubError: It cannot be downloaded, and is not in the cache.
    """
    what = f"{repo_id}{'@' + revision if revision else ''}/{filename}"
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        # a commit never changes
        cached = _cached(repo_id, filename, revision, cache_dir)
        if cached is not None:
            return cached
    try:
        metadata = get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=revision))
        current = (
            _cached(repo_id, filename, metadata.commit_hash, cache_dir) if metadata.commit_hash else None
        )
        if current is not None and _is_known(repo_id, revision, metadata.commit_hash, cache_dir):
            return current
    except Exception as error:
        explained = explain(error, repo_id, what)
        cached = _cached(repo_id, filename, revision, cache_dir)
        if cached is None or isinstance(error, EntryNotFoundError | RevisionNotFoundError):
            raise explained from error
        if not isinstance(error, OfflineModeIsEnabled):
            _logger.warning("%s; took the file from the cache: %s", explained, cached)
        return cached
    try:
        return Path(
            hf_hub_download(
                repo_id,
                filename,
                revision=revision,
                cache_dir=cache_dir,
                library_name="timm_mvhybrid",
                library_version=__version__,
            )
        )
    except Exception as error:
        raise explain(error, repo_id, what) from error


def _cached(repo_id: str, filename: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    """Finds a file in the cache."""
    try:
        found = try_to_load_from_cache(repo_id, filename, cache_dir=cache_dir, revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _is_known(repo_id: str, revision: str | None, commit: str | None, cache_dir: str | Path | None) -> bool:
    """Says whether the cache records that a revision is this commit, on which loading without network relies."""
    if revision == commit:
        return True
    root = Path(cache_dir or constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
    reference = root / "refs" / (revision or "main")
    return reference.is_file() and reference.read_text().strip() == commit


def explain(error: Exception, repo_id: str, what: str, *, action: str = "download") -> HubError:
    """Turns an error of huggingface_hub, or of the network below it, into one that says what to do.

    Raises:
        Exception: ``error`` itself, if it comes from neither.
    """
    endpoint = constants.ENDPOINT
    if isinstance(error, HFValidationError):
        return HubError(
            f"'{repo_id}' is not the name of a repository; write ORGANISATION/NAME ({_first_line(error)})"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(
            f"{what}: not in the cache, and HF_HUB_OFFLINE forbids the network; unset it and {action} once, or copy the "
            "cache of a machine that has the file"
        )
    if isinstance(error, GatedRepoError):
        return HubError(
            f"{what}: the repository is gated; ask for access on {endpoint}/{repo_id} and log in with 'hf auth login'"
        )
    status = _status(error)
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{what}: {endpoint}/{repo_id} has no such revision; leave '@revision' out for the main branch, or take one "
            "of the tags listed there"
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return MissingFileError(
            f"{what}: {endpoint}/{repo_id} has no such file; publish it again, or name another repository"
        )
    # servers other than the Hub's only say 404
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return _not_found_or_refused(status, repo_id, what, endpoint)
    if status == 403:
        return HubError(
            f"{what}: {endpoint} forbids this (403): the token has no right to it; take a token of an account that has "
            f"('hf auth login' or HF_TOKEN)"
        )
    is_local = isinstance(error, LocalEntryNotFoundError)
    if status is not None or (isinstance(error, HfHubHTTPError) and not is_local):
        fault = "the server failed" if (status or 0) >= 500 else "the server refused the request"
        return HubError(
            f"{what}: {fault} ({status} from {endpoint}: {redact(_first_line(error))}); {action} again later"
        )
    cause = error.__cause__ if is_local and error.__cause__ else error
    if type(cause).__name__ == "FileMetadataError":
        return HubError(f"{what}: {endpoint} does not answer as a Hub does; check proxy and HF_ENDPOINT")
    if "Consistency check failed" in str(error):
        return HubError(f"{what}: the download broke off and the file is incomplete; {action} again")
    if is_of_the_disk(cause):
        place = Path(getattr(cause, "filename", None) or constants.HF_HUB_CACHE)
        return HubError(f"{what}: {OutputError.of(place, cause)}")
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _TRANSPORTS:
        return HubError(
            f"{what}: no connection to {endpoint}, or it broke off ({type(cause).__name__}: "
            f"{redact(_first_line(cause))}), and the file is not in the cache; check network, proxy and HF_ENDPOINT and "
            f"{action} again"
        )
    raise error


def redact(text: str) -> str:
    """Removes the user's token from a text that a server may have written."""
    token = get_hub_token()
    return text.replace(token, "***") if token else text


def _not_found_or_refused(status: int | None, repo_id: str, what: str, endpoint: str) -> HubError:
    """Distinguishes a missing repository from a missing or refused token, as far as the server does."""
    has_token = get_hub_token() is not None
    if status == 401 and has_token:
        return HubError(
            f"{what}: {endpoint} refused the token (401): it is expired, wrong, or has no access to the repository; log in "
            "again with 'hf auth login', or correct HF_TOKEN"
        )
    if status == 401:
        return NotPublishedError(
            f"{what}: nothing is published at {endpoint}/{repo_id}, or it is private and no token was sent (401); check "
            "the name, or log in with 'hf auth login' or HF_TOKEN"
        )
    private = "or it is private and the token's account has no access" if has_token else "or it is hidden"
    return NotPublishedError(
        f"{what}: nothing is published at {endpoint}/{repo_id} (404), {private}; check the name"
    )


def _status(error: BaseException) -> int | None:
    """Finds the HTTP status of an error."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return int(status) if status is not None else None


def _first_line(error: BaseException) -> str:
    """Shortens an error to its first line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
