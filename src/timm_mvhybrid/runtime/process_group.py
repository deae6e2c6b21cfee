"""The end of a process group: closed by all processes together, or lost because one ended before the others."""

import time

import torch
import torch.distributed as dist

# torch 2.8 closes groups without the interpreter's lock
_CLOSES_WITHOUT_LOCK = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
_PAUSE_S = 0.5
# of gloo and of NCCL
_SIGNS_OF_LOSS = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
LOST = "another process of this run ended; what it printed says why, and the run can be started again"


def close_process_group() -> None:
    """Closes every process group of this process.

    Before torch 2.8 that can deadlock: the interpreter's lock is held while gloo's threads are waited for, one of which
    may need it to drop the tensors of the last collective. A pause in which the lock is free lets it do so first.
    """
    if not _CLOSES_WITHOUT_LOCK:
        time.sleep(_PAUSE_S)
    dist.destroy_process_group()


def is_loss(error: BaseException) -> bool:
    """Says whether a collective failed because another process was gone.

    Args:
        error: What it raised.
    """
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS_OF_LOSS)
