"""An exported folder → a repository of the Hub, downloaded again and verified."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    get_hf_file_metadata,
    get_token,
    hf_hub_url,
)
from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from ..models import NotPublishedError
from ..models.loading import CONFIG_FILE
from ..runtime.atomic_file import writing
from ..runtime.errors import TimmMVHybridError
from ..version import __version__
from ..weights.hub_download import HubError, download, explain
from ..weights.weights_file import COPY_AGAIN
from .companions import stated_companions
from .errors import ExportError
from .export import CARD_FILE, FILES
from .model_card import REPOSITORY_PLACEHOLDER
from .verify import Verified, verify

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class PublishSummary:
    """What was done, or would be.

    Args:
        repo: "organisation/name".
        url: Its address.
        actions: What was done, or would be, in order; empty where the repository is already as wanted.
        commit: The commit that holds the files; None in a dry run that would make it.
        revision: The tag, or None.
        sha256: sha256 of the weights file, in hex.
        verified: Whether the files were downloaded again and verified.
        dry_run: Whether nothing was done.
    """

    repo: str
    url: str
    actions: tuple[str, ...]
    commit: str | None
    revision: str | None
    sha256: str
    verified: bool
    dry_run: bool


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """A kind of folder that can be published: of a backbone, or of what other rooms write.

    Attributes:
        noun: What it holds, for the commit's message.
        config_file: The file that every such folder has and that others lack; a tag is looked up by it.
        files: Folder → names of the files to publish, the configuration among them.
        verify: Folder and remedy → what it holds, or an error that names the file at fault.
    """

    noun: str
    config_file: str
    files: Callable[[Path], tuple[str, ...]]
    verify: Callable[[Path, str], Verified]


BACKBONE = FolderKind(
    noun="Weights",
    config_file=CONFIG_FILE,
    files=lambda folder: (*FILES, *stated_companions(folder)),
    verify=lambda folder, remedy: verify(folder, remedy=remedy),
)


@dataclass(frozen=True, kw_only=True)
class _Remote:
    """The repository as it is: whether it exists, the main branch's commit, and the commit that the tag names."""

    exists: bool = True
    etags: dict[str, str | None]
    commit: str | None
    tagged: str | None


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What is to be done: the files that differ, by name, with what they become; and the tag, unless it is there."""

    repo: str
    kind: FolderKind
    private: bool
    remote: _Remote
    changed: dict[str, bytes]
    tag: str | None


def publish(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    kind: FolderKind = BACKBONE,
) -> PublishSummary:
    """Publishes an exported folder, and verifies what the Hub then gives back.

    Only configuration, weights (safetensors), model card, and the ST model or adapters of fine-tuning are uploaded, in one
    commit; of other kinds of folders, what the kind says. Files that the repository
    already holds are not; run again, nothing happens but the verification. A tag is never moved. The token is the one
    that huggingface_hub finds in its own places.

    Args:
        folder: What `export` wrote.
        repo: "organisation/name".
        private: Whether the repository must be private; one that exists and is public is refused.
        revision: Tag to set on the published commit; None for no tag.
        dry_run: Whether to look only.
        kind: What the folder holds.

    Returns:
        What was done, or would be.

    Raises:
        CheckpointError: The folder is not what was exported, the Hub refuses something, or gives back other files.
    """
    folder = Path(folder)
    if revision is not None and (revision == "main" or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", revision)):
        raise ExportError(f"'{revision}' cannot be a tag; choose a name such as v1.0")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ExportError(f"'{repo}' is not a repository's name; write ORGANISATION/NAME")
    local = kind.verify(folder, COPY_AGAIN)
    contents = _contents(folder, repo, kind)
    if get_token() is None and not dry_run:
        raise HubError(
            f"{repo}: publishing needs a token and none is set; log in with 'hf auth login', or set HF_TOKEN to one that "
            "may write"
        )
    remote = _look(repo, revision, tuple(contents), kind)
    changed = {
        name: content for name, content in contents.items() if not _same(content, remote.etags.get(name))
    }
    if remote.exists and private:
        _check_private(repo, kind)
    if remote.tagged is not None and (changed or remote.tagged != remote.commit):
        raise HubError(
            f"{repo}@{revision}: the tag exists and names other files, and tags are never moved; choose a new `revision`"
        )
    tag = revision if remote.tagged is None else None
    work = _Work(repo=repo, kind=kind, private=private, remote=remote, changed=changed, tag=tag)
    commit = None if changed else remote.commit
    if not dry_run:
        commit = _carry_out(work)
        _verify_remote(repo, revision or commit, local, tuple(contents), kind)
    return PublishSummary(
        repo=repo,
        url=f"{constants.ENDPOINT}/{repo}",
        actions=_plan(work),
        commit=commit,
        revision=revision,
        sha256=local.sha256,
        verified=not dry_run,
        dry_run=dry_run,
    )


def _contents(folder: Path, repo: str, kind: FolderKind) -> dict[str, bytes]:
    """Reads the files to publish; the card learns the repository's name."""
    try:
        contents = {name: (folder / name).read_bytes() for name in kind.files(folder)}
    except OSError as error:
        raise ExportError(f"{error.filename}: cannot be read ({error.strerror}); export again") from error
    contents[CARD_FILE] = contents[CARD_FILE].replace(REPOSITORY_PLACEHOLDER.encode(), repo.encode())
    return contents


def _look(repo: str, revision: str | None, names: tuple[str, ...], kind: FolderKind) -> _Remote:
    """Asks what the repository holds, by the requests that a download makes."""
    etags: dict[str, str | None] = {}
    commit = tagged = None
    for name in names:
        try:
            metadata = get_hf_file_metadata(hf_hub_url(repo, name))
        except (EntryNotFoundError, RevisionNotFoundError):
            etags[name] = None
        except Exception as error:
            explained = explain(error, repo, repo, action="publish")
            # the Hub answers 401 for what a stranger may not see, and 404 to one who may
            if isinstance(explained, NotPublishedError):
                return _Remote(exists=False, etags={}, commit=None, tagged=None)
            raise explained from error
        else:
            etags[name], commit = metadata.etag, metadata.commit_hash
    if revision is not None:
        try:
            tagged = get_hf_file_metadata(hf_hub_url(repo, kind.config_file, revision=revision)).commit_hash
        except (EntryNotFoundError, RevisionNotFoundError):
            tagged = None
        except Exception as error:
            raise explain(error, repo, f"{repo}@{revision}", action="publish") from error
    return _Remote(etags=etags, commit=commit, tagged=tagged)


def _same(content: bytes, etag: str | None) -> bool:
    """Compares with what the Hub states: sha256 of large files, git's sha1 of small ones."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return etag in (hashlib.sha256(content).hexdigest(), git)


def _check_private(repo: str, kind: FolderKind) -> None:
    """Raises HubError if a stranger sees the repository."""
    try:
        get_hf_file_metadata(hf_hub_url(repo, kind.config_file), token=False)
    except (EntryNotFoundError, RevisionNotFoundError):
        pass
    except RepositoryNotFoundError:
        return
    except Exception as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            return
        raise explain(error, repo, repo, action="publish") from error
    raise HubError(
        f"{repo}: `private=True` was asked for, but the repository is public, so nothing was uploaded; make it private in its "
        "settings, or choose another `repo`"
    )


def _plan(work: _Work) -> tuple[str, ...]:
    actions = []
    if not work.remote.exists:
        actions.append(f"create {'private' if work.private else 'public'} repository {work.repo}")
    for name, content in work.changed.items():
        verb = "replace" if work.remote.etags.get(name) else "upload"
        sha256 = hashlib.sha256(content).hexdigest()
        actions.append(f"{verb} {name}, {len(content):,} bytes, sha256 {sha256}")
    if work.tag is not None:
        actions.append(f"tag the commit {work.tag}")
    return tuple(actions)


def _carry_out(work: _Work) -> str:
    """Creates, uploads and tags; returns the commit that holds the files."""
    api = HfApi(library_name="timm_mvhybrid", library_version=__version__)
    repo, commit = work.repo, work.remote.commit
    if not work.remote.exists:
        _ask(repo, "creating it", lambda: api.create_repo(repo, private=work.private, exist_ok=True))
        if work.private:
            _check_private(repo, work.kind)
    if work.changed or commit is None:
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in work.changed.items()
        ]
        message = f"{work.kind.noun} exported by timm_mvhybrid {__version__}"
        info = _ask(repo, "uploading", lambda: api.create_commit(repo, operations, commit_message=message))
        commit = info.oid
    if work.tag is not None:
        tag = work.tag
        _ask(repo, f"setting the tag {tag}", lambda: api.create_tag(repo, tag=tag, revision=commit))
    return commit


def _ask(repo: str, act: str, request: Callable[[], _T]) -> _T:
    """Makes a request of the Hub, with errors that name the act."""
    try:
        return request()
    except Exception as error:
        raise explain(error, repo, f"{repo}: {act} failed", action="publish") from error


def _verify_remote(
    repo: str, revision: str, local: Verified, names: tuple[str, ...], kind: FolderKind
) -> None:
    """Downloads into an empty cache what was published, and verifies it."""
    with writing(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as cache:
        try:
            paths = [download(repo, name, revision=revision, cache_dir=cache) for name in names]
            found = kind.verify(paths[0].parent, "publish again")
        except TimmMVHybridError as error:
            raise HubError(
                f"{repo}@{revision}: was uploaded, but what the Hub gives back does not verify: {error}"
            ) from error
    if found.sha256 != local.sha256:
        raise HubError(
            f"{repo}@{revision}: the Hub gives back weights of sha256 {found.sha256}, but {local.sha256} were uploaded; "
            "publish again"
        )
