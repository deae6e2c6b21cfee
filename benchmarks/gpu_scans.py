"""Both scans by every implementation and by mamba-ssm's own functions: agreement, time, memory."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from timm_mvhybrid.ops import implementation, ssd_scan, use_implementation

from .agreement import DisagreementError
from .measure import Spread, measure, timer_for
from .memory import peak_extra_bytes
from .peers import MissingPeerError, mamba_ssm_chunk_scan, mamba_ssm_cuda
from .problems import (
    WORK,
    Peer,
    Problem,
    check_peer,
    dtype_name,
    scan_calls,
    selective_scan_problem,
    ssd_scan_problem,
)
from .report import Table, format_ratio, format_seconds
from .scan import token_major_scan
from .settings import Settings

TRITON = "triton"
FLOOR = "memory floor"
DTYPES = (torch.float32, torch.bfloat16)
ODD_LENGTHS = (1, 17, 197)
Implementation = Literal["triton", "cpu", "reference", "mamba_ssm"]


@dataclass(frozen=True, kw_only=True)
class ScanBench:
    """What both scans are measured with.

    Attributes:
        settings: The options.
        device: The device.
        bandwidth: Of its memory, bytes read and written a second.
    """

    settings: Settings
    device: torch.device
    bandwidth: float


def compare_scans(
    bench: ScanBench, operation: str, figures: dict[str, Spread], tables: list[Table], notes: list[str]
) -> None:
    """Checks, then times one scan in float32 and bfloat16.

    Args:
        bench: What to measure with.
        operation: ``selective_scan`` or ``ssd_scan``.
        figures: Where ratios go.
        tables: Where tables go.
        notes: Where missing peers go.

    Raises:
        DisagreementError: An implementation is wrong; the message has a line for each that is.
    """
    peers = _implementations(bench, operation, notes)
    if bench.device.type == "cuda":
        peers += _mamba_ssm(operation, notes)
    full = _problem(operation, bench)
    lengths = ODD_LENGTHS[:2] if bench.settings.quick else ODD_LENGTHS
    tables.append(_check(peers, full, [_problem(operation, bench, length) for length in lengths]))
    for dtype in DTYPES:
        problem = full.to(dtype)
        floors = (problem.forward_bytes(), problem.forward_bytes() + problem.backward_bytes())
        for work, floor_bytes in zip(WORK, floors, strict=True):
            contenders = [scan_calls(peer, problem)[work] for peer in peers]
            times = measure(contenders, bench.settings.effort(warmups=3), timer_for(bench.device))
            peaks = {c.name: peak_extra_bytes(c.call, bench.device) for c in contenders}
            floor_s = floor_bytes / bench.bandwidth
            setting = f"{operation}, {dtype_name(dtype)}, {work}"
            rows = [[FLOOR, f"{floor_s * 1e3:.4g}", "–", "1", "–"]]
            for peer in peers:
                seconds = times.spread(peer.name)
                ratio = Spread(
                    median=seconds.median / floor_s, low=seconds.low / floor_s, high=seconds.high / floor_s
                )
                figures[f"{setting}: {peer.name} / {FLOOR}"] = ratio
                if TRITON in times.seconds and peer.name != TRITON:
                    figures[f"{setting}: {TRITON} / {peer.name}"] = times.ratio(TRITON, peer.name)
                rows.append([peer.name, *format_seconds(seconds), *format_ratio(ratio)])
            tables.append(
                Table(
                    title=f"{setting}, {problem.size}, {len(times.seconds[peers[0].name])} rounds",
                    columns=["", "ms", "quartiles", f"time / {FLOOR}", "quartiles", "peak extra MiB"],
                    rows=[[*row, f"{peaks[row[0]] / 2**20:.1f}" if row[0] in peaks else "–"] for row in rows],
                )
            )


def _check(peers: list[Peer], full: Problem, small: list[Problem]) -> Table:
    """Compares all peers with the reference at every size and dtype, and only then complains."""
    worst: dict[tuple[str, torch.dtype], float] = {}
    disagreements = []
    for drawn in (*small, full):
        for dtype in DTYPES:
            problem = drawn.to(dtype)
            exact = problem.exact()
            for peer in peers:
                try:
                    errors = check_peer(peer, problem, exact)
                except DisagreementError as error:
                    disagreements.append(str(error))
                    continue
                key = (peer.name, dtype)
                worst[key] = max(worst.get(key, 0.0), *errors.values())
    if disagreements:
        raise DisagreementError("\n".join(disagreements))
    return Table(
        title=f"{full.operation}: largest error against the float64 reference, relative to its largest number",
        columns=["", *(dtype_name(dtype) for dtype in DTYPES)],
        rows=[[peer.name, *(f"{worst[peer.name, dtype]:.1e}" for dtype in DTYPES)] for peer in peers],
    )


def _problem(operation: str, bench: ScanBench, length: int | None = None) -> Problem:
    """Draws a scan: of the size to time, or a small one of a given length."""
    quick, device = bench.settings.quick, bench.device
    if operation == "selective_scan":
        if length is not None or quick:
            return selective_scan_problem(2, 8 if quick else 48, length or 19, 16, device)
        return selective_scan_problem(64, 384, 257, 16, device)
    if length is not None or quick:
        return ssd_scan_problem(2, length or 19, 3, 8 if quick else 64, 16 if quick else 64, device)
    return ssd_scan_problem(128, 257, 12, 64, 64, device)


def _implementations(bench: ScanBench, operation: str, notes: list[str]) -> list[Peer]:
    """Collects our implementations that can run on the device, or notes what cannot be imported."""
    scan = token_major_scan if operation == "selective_scan" else _ssd_scan
    peers = []
    for name in get_args(Implementation):
        if name != "auto" and implementation.why_not(operation, name, bench.device.type, torch.float32):
            continue
        if name in (TRITON, "mamba_ssm"):
            try:
                implementation.load(operation, name)
            except ImportError as error:
                notes.append(f"{operation}, not {name}: it cannot be imported ({error})")
                continue
        peers.append(
            Peer(
                name=name if name != "mamba_ssm" else "mamba_ssm through our adapter",
                scan=scan,
                token_major=operation == "selective_scan",
                context=partial(use_implementation, name),
                **(_coarse(operation) if name == "mamba_ssm" else {}),
            )
        )
    return peers


def _mamba_ssm(operation: str, notes: list[str]) -> list[Peer]:
    """Collects mamba-ssm's own functions, or notes what is missing."""
    try:
        if operation == "selective_scan":
            return [Peer(name="mamba_ssm CUDA kernels", scan=mamba_ssm_cuda(), **_coarse(operation))]
        scan = mamba_ssm_chunk_scan()
    except MissingPeerError as error:
        notes.append(str(error))
        return []

    def with_chunk(size: int) -> Callable[..., Tensor]:
        return lambda x, dt, A, B, C, D, bias: scan(
            x, dt, A, B, C, chunk_size=size, D=D, dt_bias=bias, dt_softplus=True
        )

    return [
        Peer(
            name=f"mamba_ssm Triton kernels, chunk {size}",
            scan=with_chunk(size),
            **_coarse(operation),
        )
        for size in (64, 256)
    ]


def _coarse(operation: str) -> dict[str, Any]:
    """Allows mamba-ssm's kernels what they are built with: fast maths, and TF32 products in the SSD scan."""
    float32 = 1e-3 if operation == "selective_scan" else 1e-2
    return {"limits": {torch.float32: float32, torch.bfloat16: 3e-2}}


def _ssd_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
    return ssd_scan(x, dt, A, B, C, D, dt_bias=dt_bias, dt_softplus=True)
