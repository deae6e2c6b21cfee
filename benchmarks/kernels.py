"""The Triton kernels at the models' sizes → registers, spills and shared memory, for GPUs that need not be here.

Each kernel is compiled ahead of time from the launch that the scan itself plans, on tensors without data.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from timm_mvhybrid.ops.selective_scan import triton as selective_scan
from timm_mvhybrid.ops.selective_scan.inputs import Inputs as SelectiveScanInputs
from timm_mvhybrid.ops.ssd import triton as ssd
from timm_mvhybrid.ops.ssd.inputs import Inputs as SSDInputs

from .goals import Goal
from .measure import Spread
from .report import Report, Table
from .settings import Settings

ARCHITECTURES = (80, 90)
"""Compute capabilities: A100, and H100 or H200."""

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}

SPILLS = "{operation}: bytes spilled by any kernel"
GOALS = [Goal(figure=SPILLS.format(operation="selective_scan"), relation="≤", bound=0)]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A kernel as a model launches it.

    Attributes:
        operation: Name of the scan.
        problem: Whose mixer, and what it computes.
        dtype: Of the input.
        launch: The kernel with its arguments, of either scan's ``Launch``.
    """

    operation: str
    problem: str
    dtype: torch.dtype
    launch: Any


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a compiled kernel takes.

    Attributes:
        operation: Name of the scan.
        kernel: Name of the kernel.
        problem: Whose mixer, and what it computes.
        dtype: Of the input.
        architecture: Compute capability, such as sm_90.
        programs: Programs in a launch.
        warps: Warps a program.
        registers: Registers a thread.
        spilled_bytes: Stack bytes a thread; the kernels call nothing and index no arrays, so these are spills.
        shared_bytes: Shared memory in bytes a program.
    """

    operation: str
    kernel: str
    problem: str
    dtype: str
    architecture: str
    programs: int
    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int


def run(settings: Settings) -> Report:
    """Compiles every variant for every architecture.

    Args:
        settings: The options; a smoke run compiles one variant for one architecture.

    Returns:
        The report.
    """
    variants = list(model_variants())
    architectures = ARCHITECTURES
    if settings.quick:
        variants, architectures = variants[:1], ARCHITECTURES[-1:]
    usages = [measure_usage(variant, sm) for variant in variants for sm in architectures]
    figures = {}
    for operation in {usage.operation for usage in usages}:
        most = float(max(usage.spilled_bytes for usage in usages if usage.operation == operation))
        figures[SPILLS.format(operation=operation)] = Spread(median=most, low=most, high=most)
    columns = [field.name for field in fields(Usage)]
    return Report(
        name="kernels",
        title="Triton kernels, compiled ahead of time",
        method=(
            "Compiled from the launches that the scans plan for the pretraining models (64 images, 257 tokens, width "
            "384) by this Triton and the ptxas that it carries; counts are cuobjdump's."
        ),
        figures=figures,
        goals=GOALS,
        tables=[
            Table(
                title="Resources",
                columns=[name.replace("_", " ") for name in columns],
                rows=[[str(getattr(usage, name)) for name in columns] for usage in usages],
            )
        ],
        judged=not settings.quick,
    )


def model_variants() -> Iterator[Variant]:
    """Yields the kernels that the three mixers launch, forward and backward, in float32 and bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        for mixer, problem in (("MambaVision", mambavision_problem), ("Vim", vim_problem)):
            yield from selective_scan_variants(mixer, problem(dtype))
        yield from ssd_variants("Hydra", hydra_problem(dtype))


def mambavision_problem(dtype: torch.dtype) -> SelectiveScanInputs:
    """Makes the scan's inputs as the MambaVision mixer passes them: x, B and C are slices of projections."""
    batch, length, d_inner, d_state, dt_rank = 64, 257, 384, 16, 24
    xz = empty(dtype, batch, length, 2 * d_inner)
    _, B, C = empty(dtype, batch, length, dt_rank + 2 * d_state).split([dt_rank, d_state, d_state], dim=-1)
    delta = empty(dtype, batch, length, d_inner)
    A, D, bias = (empty(torch.float32, *shape) for shape in ((d_inner, d_state), (d_inner,), (d_inner,)))
    u = xz.chunk(2, dim=-1)[0]
    return SelectiveScanInputs(u, delta, A, B.unsqueeze(2), C.unsqueeze(2), D, None, bias, True)


def vim_problem(dtype: torch.dtype) -> SelectiveScanInputs:
    """Makes the scan's inputs as the Vim mixer passes them: its two directions are two groups."""
    batch, length, d_inner, d_state, groups = 64, 257, 1536, 16, 2
    u, delta = (empty(dtype, batch, length, d_inner) for _ in range(2))
    B, C = (empty(dtype, batch, length, groups, d_state) for _ in range(2))
    A, D, bias = (empty(torch.float32, *shape) for shape in ((d_inner, d_state), (d_inner,), (d_inner,)))
    return SelectiveScanInputs(u, delta, A, B, C, D, None, bias, True)


def hydra_problem(dtype: torch.dtype) -> SSDInputs:
    """Makes the scan's inputs as the Hydra mixer passes them: its two directions are more of the batch."""
    batch, length, heads, headdim, d_state = 128, 257, 12, 64, 64
    x, dt = empty(dtype, batch, length, heads, headdim), empty(dtype, batch, length, heads)
    B, C = (empty(dtype, batch, length, 1, d_state) for _ in range(2))
    A, bias = (empty(torch.float32, heads) for _ in range(2))
    return SSDInputs(x, dt, A, B, C, None, bias, True)


def selective_scan_variants(mixer: str, inputs: SelectiveScanInputs) -> Iterator[Variant]:
    """Yields forward without and with saved states, and backward."""
    u = inputs.u
    yield Variant(
        operation="selective_scan",
        problem=f"{mixer}, inference",
        dtype=u.dtype,
        launch=selective_scan.plan_forward(inputs, False),
    )
    training = selective_scan.plan_forward(inputs, True)
    states: Any = training.arguments["states"]
    launches = [training, selective_scan.plan_backward(empty(u.dtype, *u.shape), None, states, inputs)]
    yield from _training_variants("selective_scan", mixer, u.dtype, launches)


def ssd_variants(mixer: str, inputs: SSDInputs) -> Iterator[Variant]:
    """Yields what ssd's forward with saved states and its backward launch."""
    x = inputs.x
    forward = ssd.plan_forward(inputs, True)
    states: Any = forward[-1].arguments["states"]
    backward = ssd.plan_backward(empty(x.dtype, *x.shape), None, states, inputs)
    # backward begins with the kernel that forward begins with
    yield from _training_variants("ssd_scan", mixer, x.dtype, [*forward, *backward[1:]])


def empty(dtype: torch.dtype, *shape: int) -> Tensor:
    """Makes a tensor that has no data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def measure_usage(variant: Variant, sm: int) -> Usage:
    """Compiles a kernel and reads what it takes.

    Args:
        variant: The kernel.
        sm: Compute capability, 90 for 9.0.

    Returns:
        Its resources.

    Raises:
        RuntimeError: Triton runs as an interpreter in this process, or is older than 3.4.
    """
    if not hasattr(triton, "knobs"):
        raise RuntimeError(f"Triton {triton.__version__} compiles by another interface; install 3.4 or newer")
    launch = variant.launch
    if not isinstance(launch.kernel, triton.JITFunction):
        raise RuntimeError("TRITON_INTERPRET is set: the interpreter compiles nothing; unset it")
    options = {**launch.options, "enable_fp_fusion": True}
    compiled = triton.compile(
        source_of(launch.kernel, {**launch.arguments, **launch.constants}),
        target=GPUTarget("cuda", sm, 32),
        options=options,
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        text = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    registers, stack = (int(number) for number in re.search(r"REG:(\d+) STACK:(\d+)", text).groups())
    return Usage(
        operation=variant.operation,
        kernel=launch.kernel.__name__,
        problem=variant.problem,
        dtype=str(variant.dtype).removeprefix("torch."),
        architecture=f"sm_{sm}",
        programs=launch.programs,
        warps=launch.options["num_warps"],
        registers=registers,
        spilled_bytes=stack,
        shared_bytes=compiled.metadata.shared,
    )


def source_of(kernel: Any, values: dict[str, Any]) -> ASTSource:
    """Specialises a kernel as a launch would: on the number 1, on absent tensors, on divisibility by 16.

    Tensors are taken to start at multiples of 16 bytes.

    Args:
        kernel: The kernel.
        values: Its arguments by name.

    Returns:
        What ``triton.compile`` takes.
    """
    signature, constants, hints = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            divisible = True
        elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
            signature[parameter.name] = "constexpr"
            constants[position,] = value
            continue
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            divisible = value % 16 == 0 and not parameter.do_not_specialize
        if divisible:
            hints[position,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, hints)


def _training_variants(
    operation: str, mixer: str, dtype: torch.dtype, launches: Iterable[Any]
) -> Iterator[Variant]:
    """Yields one variant a launch."""
    for launch in launches:
        yield Variant(operation=operation, problem=f"{mixer}, training", dtype=dtype, launch=launch)
