"""Which form of a scan a call gets: the registered operator, or the one that exporters and torch.func can read."""

import torch


def wants_portable_form() -> bool:
    """Whether a program is being exported (torch.export, ONNX), or a transform of torch.func is at work.

    No other runtime knows the registered operators, and torch.func cannot see into them. Compilation and TorchScript
    keep them: there they are one node instead of a hundred.

    Returns:
        True while exporting or inside ``torch.func.grad``, ``vmap``, ``jvp`` and their like.
    """
    if torch._C._are_functorch_transforms_active() or torch.onnx.is_in_onnx_export():
        return True
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    # torch 2.6: what compiles without dynamo is an export
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
