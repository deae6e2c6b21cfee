"""The end of a process group, where torch before 2.8 can stand still."""

import time

import torch
import torch.distributed as dist

# torch 2.8 closes groups without the interpreter's lock
_CLOSES_WITHOUT_LOCK = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
_PAUSE_S = 0.5


def close_process_group() -> None:
    """Closes every process group of this process.

    Before torch 2.8 that can deadlock: the interpreter's lock is held while gloo's threads are waited for, one of which
    may need it to drop the tensors of the last collective. A pause in which the lock is free lets it do so before.
    """
    if not _CLOSES_WITHOUT_LOCK:
        time.sleep(_PAUSE_S)
    dist.destroy_process_group()
