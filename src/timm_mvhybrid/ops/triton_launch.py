"""Kernels of Triton with all that they are launched with, so that launches can be planned without a GPU."""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime.implementation_request import ImplementationError

Arguments = dict[str, Tensor | int | None]


class Launch(NamedTuple):
    """A planned launch.

    Attributes:
        kernel: The kernel.
        programs: Its programs; with none, nothing is launched.
        arguments: Its arguments; tensors may be on the meta device.
        constants: What it is compiled for.
        options: ``num_warps``, and ``num_stages`` where that is not left to Triton.
    """

    kernel: Any
    programs: int
    arguments: Arguments
    constants: dict[str, Any]
    options: dict[str, int]


def strides(name: str, tensor: Tensor | None, axes: tuple[str, ...]) -> dict[str, int]:
    """Names the strides of a tensor, in elements; zero for an absent one."""
    steps = [0] * len(axes) if tensor is None else tensor.stride()
    return {f"{name}_{axis}": step for axis, step in zip(axes, steps, strict=True)}


def check_device(name: str, x: Tensor, interpreted: bool) -> None:
    """Raises ImplementationError for a tensor on the CPU, which only Triton's interpreter takes."""
    if x.device.type == "cpu" and not interpreted:
        raise ImplementationError(
            f'the Triton kernels need a GPU, but {name} is on the CPU; choose the "cpu" implementation, or set '
            "TRITON_INTERPRET=1 before the first call to run them in Triton's interpreter"
        )


def run(x: Tensor, *launches: Launch) -> None:
    """Launches kernels one after the other on the device of ``x``."""
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        for launch in launches:
            if launch.programs:
                # Triton changes its default of enable_fp_fusion
                launch.kernel[(launch.programs,)](
                    **launch.arguments, **launch.constants, **launch.options, enable_fp_fusion=True
                )
