"""The errors that end a command in one sentence that any terminal shows: their base, their kinds, and what writers raise."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import TypeGuard


def printable(text: str) -> str:
    r"""Escapes whatever is not a visible character, so that names in a file cannot control a terminal.

    Returns:
        The text in one line: line breaks and tabs as blanks; other control, format and unassigned characters, including
        escape codes and changes of writing direction, as Python writes them (``\x1b``).
    """
    return "".join(
        character
        if character.isprintable()
        else " "
        if character in "\t\n\r"
        else character.encode("unicode_escape").decode()
        for character in text
    )


_ROOM = "make room there, and start again"
_PLACE = "choose another place, or ask for permission to write there"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "a limit of the file system or of the process (ulimit -f); choose another place, or raise it",
    errno.EROFS: _PLACE,
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    # there is a file where a folder is needed
    errno.EEXIST: "choose another place",
    errno.ENOTDIR: "choose another place",
}
_OF_DISKS_ALONE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class TimmMVHybridError(Exception):
    """What cannot be done; the message is one line for the user: file or argument, value and remedy."""


class ParameterError(TimmMVHybridError, ValueError):
    """A parameter has a value that it cannot have; the message names it in backticks, by its Python name."""


def check_seed(seed: int) -> None:
    """Raises ParameterError for a seed that not every generator takes: scikit-learn's end at 32 bits."""
    if not 0 <= seed < 2**32:
        raise ParameterError(f"`seed` is {seed}; it must be from 0 to {2**32 - 1}")


class DataError(TimmMVHybridError, ValueError):
    """The input as a whole cannot be used."""


class PatchError(DataError):
    """One patch of an otherwise usable input cannot be read."""


class RemoteError(DataError):
    """A file on another machine cannot be read; that says nothing of its content.

    Args:
        message: One line.
        is_missing: Whether the machine answered that there is no such file.
    """

    def __init__(self, message: str, is_missing: bool = False) -> None:
        super().__init__(message)
        self.is_missing = is_missing

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, bool]]:
        """Keeps both in pickles, by which workers' errors are sent."""
        return type(self), (str(self), self.is_missing)


class NotASlideError(DataError):
    """No slide library can open the file."""


class NoResolutionError(DataError):
    """A slide states no usable resolution, and none was given."""


class NoTissueError(DataError):
    """A slide holds no tissue, so that there is nothing to take from it."""


class SlideChoiceError(DataError):
    """The slide of a coordinate file is not found, or not the right one.

    Args:
        cause: What is wrong; the remedy of ``open_source`` is added.

    Attributes:
        cause: The same without the remedy, for callers that are given the slide in another way.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(f"{cause}; give the slide with `slide=FILE`")
        self.cause = cause

    def __reduce__(self) -> tuple[type[SlideChoiceError], tuple[str]]:
        """Keeps the cause in pickles, by which workers' errors are sent."""
        return type(self), (self.cause,)


class EvaluationError(TimmMVHybridError, RuntimeError):
    """A model, an output or a device cannot do what was asked."""


class PretrainError(TimmMVHybridError, ValueError):
    """A training run cannot start or continue."""


class MissingPackageError(TimmMVHybridError, ImportError):
    """An optional package is not installed."""


class OutputError(TimmMVHybridError):
    """A file or folder cannot be written; what was there before is still there."""

    @classmethod
    def of(cls, path: Path, error: OSError, num_bytes: int | None = None) -> OutputError:
        """Reports what the operating system says, of which file, and how much space is missing.

        Args:
            path: The file or folder, by the name that the user knows.
            error: Of the operating system.
            num_bytes: Size that is needed; None if it is unknown.
        """
        reason = error.strerror or str(error)
        facts = [] if num_bytes is None else [f"{num_bytes:,} bytes needed"]
        # under a quota the free space of the disk would mislead
        free = free_bytes(path) if error.errno == errno.ENOSPC else None
        if free is not None:
            facts.append(f"{free:,} free")
        remedy = _REMEDIES.get(error.errno or 0)
        return cls(
            f"{path}: cannot be written ({'; '.join([reason, *([', '.join(facts)] if facts else [])])})"
            f"{'; ' + remedy if remedy else ''}"
        )


class BusyOutputError(OutputError):
    """Another process writes the file or folder."""


def is_of_the_disk(error: BaseException) -> TypeGuard[OSError]:
    """Says whether the operating system could not, or was not allowed to, write; not that a network or peer failed."""
    if not isinstance(error, OSError):
        return False
    # a firewall forbids too, but then the error names no file
    return error.errno in _OF_DISKS_ALONE or (
        isinstance(error, PermissionError) and error.filename is not None
    )


def free_bytes(path: Path) -> int | None:
    """Looks up how much space is free.

    Returns:
        Bytes that this user may still write; None where the file system does not say.
    """
    for folder in (path, *path.absolute().parents):
        try:
            usage = shutil.disk_usage(folder)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return usage.free if usage.total else None
    return None


def check_space(path: Path, num_bytes: int) -> None:
    """Finds out whether something fits, before time is spent on it.

    Raises:
        OutputError: It does not fit.
    """
    free = free_bytes(path)
    if free is not None and free < num_bytes:
        raise OutputError.of(path, OSError(errno.ENOSPC, "No space left on device"), num_bytes)


def one_sentence(error: TimmMVHybridError | OSError) -> str:
    """Says what ended a command, in one line that a terminal shows and does not interpret."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror or error}"
    return printable(" ".join(text.split()))
