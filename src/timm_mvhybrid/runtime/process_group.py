"""A process group, from its start to its end: of all processes together, or of one before the others."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from .errors import TimmMVHybridError

# torch 2.8 closes groups without the interpreter's lock
_CLOSES_WITHOUT_LOCK = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
_PAUSE_S = 0.5
# of gloo and of NCCL
_SIGNS_OF_LOSS = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")


class LostProcessError(TimmMVHybridError, RuntimeError):
    """Another process of a common work is gone."""


@contextmanager
def process_group(backend: str, timeout: timedelta) -> Iterator[None]:
    """Joins the processes that torchrun started, or opens a group of one, while the block runs.

    Raises:
        LostProcessError: A collective failed because another process was gone.
    """
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS_OF_LOSS):
            raise
        raise LostProcessError(
            "another process of this run ended; what it printed says why, and the run can be started again"
        ) from error
    finally:
        close_process_group()


def close_process_group() -> None:
    """Closes every process group of this process.

    Before torch 2.8 that can deadlock: the interpreter's lock is held while gloo's threads are waited for, one of which
    may need it to drop the tensors of the last collective. A pause in which the lock is free lets it do so first.
    """
    if not _CLOSES_WITHOUT_LOCK:
        time.sleep(_PAUSE_S)
    dist.destroy_process_group()
