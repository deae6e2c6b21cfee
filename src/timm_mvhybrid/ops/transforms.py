"""Which form of an operation a call takes: the registered operator, or one that exporters and torch.func can read."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import forward_ad

_forward_passes = 0


def wants_portable_form() -> bool:
    """Whether a program is being exported (torch.export, ONNX), or a transform of torch.func is at work.

    Other runtimes do not know the registered operators, torch.func cannot see into them, and forward-mode derivatives
    would silently skip them. Compilation and TorchScript keep them: there they are one node instead of a hundred.

    Returns:
        True while exporting, inside ``torch.func.grad``, ``vmap``, ``jvp`` and their like, and inside
        ``torch.autograd.forward_ad.dual_level`` and :func:`.forward_mode.derivatives`.
    """
    if torch._C._are_functorch_transforms_active() or torch.onnx.is_in_onnx_export():
        return True
    if forward_ad._current_level >= 0 or _forward_passes:
        return True
    # the flag that torch.compiler.is_exporting() reads; dynamo of torch 2.8 takes that function for True while it
    # compiles
    exporting = getattr(torch.compiler, "_is_exporting_flag", None)
    if exporting is not None:
        return bool(exporting)
    # torch 2.6: what compiles without dynamo is an export; a strict export cannot be recognised and keeps the operators
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


@contextmanager
def in_forward_mode() -> Iterator[None]:
    """Has calls take the portable form within a ``with`` statement; like torch's own levels, in all threads."""
    global _forward_passes
    _forward_passes += 1
    try:
        yield
    finally:
        _forward_passes -= 1
