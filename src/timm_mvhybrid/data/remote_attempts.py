"""What asks another machine: tried again where its error may pass, and ended by one sentence without credentials."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..runtime.errors import DataError, MissingPackageError, RemoteError
from ..runtime.urls import without_credentials

NUM_ATTEMPTS = 4
FIRST_WAIT_S = 0.5
"""Before the second attempt; doubled before each one after it."""
# of HTTP: a time-out, too early, too many requests; from 500 on the server is at fault
_PASSING_STATUS = (408, 425, 429)
_GONE_STATUS = (404, 410)
_PERMANENT = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    KeyError,
    TypeError,
    ValueError,
)
_T = TypeVar("_T")


def attempt(
    call: Callable[[], _T], name: str, secrets: Sequence[str] = (), *, hides_causes: bool = False
) -> _T:
    """Calls, and again after a while where the error may pass.

    Args:
        call: Asks another machine.
        name: What is asked for, as messages may name it.
        secrets: What messages may not hold, beside what URLs have.
        hides_causes: Whether "not found" may stand for any other error, which is its cause, as fsspec has it for web servers.

    Raises:
        RemoteError: It failed for good.
        DataError: As the call.
        MissingPackageError: As the call.
    """
    wait = FIRST_WAIT_S
    for number in range(1, NUM_ATTEMPTS + 1):
        try:
            return call()
        except (DataError, MissingPackageError):
            raise
        # of many libraries' kinds
        except Exception as error:
            hidden = error.__cause__ if hides_causes and isinstance(error, FileNotFoundError) else None
            cause = hidden or error
            if number == NUM_ATTEMPTS or not _may_pass(cause):
                raise _as_sentence(cause, name, secrets, number) from None
        time.sleep(wait)
        wait *= 2
    raise AssertionError


def _may_pass(error: BaseException) -> bool:
    """Says whether trying again may help: connections, time-outs and servers' own errors."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status >= 500 or status in _PASSING_STATUS
    # a connection's errors are some of OSError's, and none of aiohttp's or botocore's that may pass is a permanent one
    return not isinstance(error, _PERMANENT)


def _as_sentence(error: BaseException, name: str, secrets: Sequence[str], attempts: int) -> RemoteError:
    status = getattr(error, "status", None)
    if status in _GONE_STATUS or isinstance(error, FileNotFoundError):
        return RemoteError(f"{name}: there is no such file; check the URL", is_missing=True)
    reason = " ".join(str(error).split()) or type(error).__name__
    for secret in filter(None, secrets):
        reason = reason.replace(secret, "…")
    reason = without_credentials(reason)
    if status in (401, 403) or isinstance(error, PermissionError):
        return RemoteError(
            f"{name}: may not be read ({reason}); give credentials as fsspec finds them, or sign the URL anew"
        )
    times = f", {attempts} times" if attempts > 1 else ""
    return RemoteError(
        f"{name}: cannot be read ({reason}{times}); find out whether the machine answers, and start again"
    )
