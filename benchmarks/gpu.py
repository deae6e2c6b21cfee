"""Scans and models on a GPU: agreement, then time beside mamba-ssm's kernels, timm's ViT and the memory floor."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from timm_mvhybrid.ops import implementation_status, use_implementation

from .goals import Goal
from .gpu_scans import FLOOR, TRITON, ScanBench, compare_scans
from .measure import Contender, Spread, measure, spread, timer_for
from .memory import peak_extra_bytes
from .model import check_model, training_step
from .report import Report, Table, format_ratio, format_seconds
from .settings import Settings
from .vision_models import MVHYBRID, STATE_SPACE_MODELS, VIT, create, create_vit, images
from .wheels import build_and_install

Part = Literal["selective_scan", "ssd_scan", "model"]
PARTS: tuple[Part, ...] = ("selective_scan", "ssd_scan", "model")
TRAINING = "bfloat16 autocast training step, batch {}"
BATCHES = (64, 128)

GOALS: dict[Part, list[Goal]] = {
    "selective_scan": [
        *(
            Goal(
                figure=f"selective_scan, {dtype}, forward + backward: {TRITON} / mamba_ssm CUDA kernels",
                relation="≤",
                bound=1.0,
            )
            for dtype in ("float32", "bfloat16")
        ),
        *(
            Goal(
                figure=f"selective_scan, {dtype}, forward: {TRITON} / {FLOOR}",
                relation="≤",
                bound=1.5,
            )
            for dtype in ("float32", "bfloat16")
        ),
    ],
    "ssd_scan": [
        Goal(
            figure=f"ssd_scan, {dtype}, forward + backward: {TRITON} / mamba_ssm Triton kernels, chunk {chunk}",
            relation="≤",
            bound=1.0,
        )
        for dtype in ("float32", "bfloat16")
        for chunk in (64, 256)
    ],
    "model": [
        Goal(figure=f"{TRAINING.format(batch)}: {MVHYBRID} / {VIT}", relation="≤", bound=1.0)
        for batch in BATCHES
    ],
}


def run(
    settings: Settings, device: torch.device, sdist_dir: Path | None = None, parts: Sequence[Part] = PARTS
) -> Report:
    """Builds mamba-ssm if asked to, checks every implementation, then times.

    Args:
        settings: The options.
        device: A GPU; the CPU runs the same code in a smoke run.
        sdist_dir: Folder of source distributions to build mamba-ssm and causal-conv1d from.
        parts: What to measure.

    Returns:
        The report.
    """
    notes = []
    if device.type != "cuda":
        notes.append(f"no wheels are built for device {device}")
    elif sdist_dir is None:
        notes.append("no --sdist-dir: mamba-ssm and causal-conv1d are taken as installed, or missed")
    else:
        notes += build_and_install(sdist_dir, device)
    for scan in implementation_status().scans:
        if scan.device_type == device.type:
            notes += [f"{scan.operation}, not {name}: {reason}" for name, reason in scan.others.items()]

    figures: dict[str, Spread] = {}
    tables: list[Table] = []
    # events and kernels go to the current device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if set(parts) & {"selective_scan", "ssd_scan"}:
            bandwidth = copy_bandwidth(device, settings)
            low, high = bandwidth.low / 1e9, bandwidth.high / 1e9
            notes.append(
                f"copy bandwidth, bytes read and written: {bandwidth.median / 1e9:.0f} GB/s "
                f"({low:.0f} – {high:.0f}); the {FLOOR} is the time at that speed to read every input and write "
                "every output once"
            )
            bench = ScanBench(settings=settings, device=device, bandwidth=bandwidth.median)
            for operation in ("selective_scan", "ssd_scan"):
                if operation in parts:
                    compare_scans(bench, operation, figures, tables, notes)
        if "model" in parts:
            compare_models(settings, device, figures, tables)
    return Report(
        name="gpu",
        title="Scans and whole models on a GPU",
        method=(
            "Every implementation agreed with the float64 reference, outputs and gradients of all inputs, before the "
            "timing. Times are those between two events on the device, after a write that empties the cache. One "
            "process, interleaved rounds, medians and quartiles; ratios are those within a round. A training step is "
            "forward and backward of the mean of the squared features, no optimizer."
        ),
        figures=figures,
        goals=[goal for part in PARTS if part in parts for goal in GOALS[part]],
        tables=tables,
        notes=notes,
        judged=not settings.quick,
    )


def copy_bandwidth(device: torch.device, settings: Settings) -> Spread:
    """Measures how fast memory is copied within the device.

    Args:
        device: The device.
        settings: The options.

    Returns:
        Bytes read and written a second.
    """
    size = 1 << 20 if settings.quick else 1 << 30
    source, target = (torch.zeros(size, dtype=torch.int8, device=device) for _ in range(2))
    contender = Contender(name="copy", call=partial(target.copy_, source))
    times = measure([contender], settings.effort(), timer_for(device))
    return spread([2 * size / seconds for seconds in times.seconds["copy"]])


def compare_models(
    settings: Settings, device: torch.device, figures: dict[str, Spread], tables: list[Table]
) -> None:
    """Times training steps beside timm's ViT.

    Args:
        settings: The options.
        device: The device.
        figures: Where ratios go.
        tables: Where tables go.
    """
    quick = settings.quick
    # what a plain installation runs, without mamba-ssm
    implementation: Literal["triton", "cpu"] = "triton" if device.type == "cuda" else "cpu"
    models = {name: create(name, quick, device) for name in STATE_SPACE_MODELS}
    with use_implementation(implementation):
        errors = {name: check_model(name, model, images(1, quick, device)) for name, model in models.items()}
    models = {VIT: create_vit(quick, device), **models}
    tables.append(
        Table(
            title="Error of float32 features against float64 with the reference scans, relative to the largest",
            columns=["", "error"],
            rows=[[name, f"{error:.1e}"] for name, error in errors.items()],
        )
    )
    for batch in BATCHES:
        setting = TRAINING.format(batch)
        x = images(2 if quick else batch, quick, device)
        contenders = [
            Contender(name=name, call=training_step(model, x, torch.bfloat16))
            for name, model in models.items()
        ]
        with use_implementation(implementation):
            times = measure(contenders, settings.effort(warmups=3), timer_for(device))
            peaks = {c.name: peak_extra_bytes(c.call, device) for c in contenders}
        for name in models:
            if name != VIT:
                figures[f"{setting}: {name} / {VIT}"] = times.ratio(name, VIT)
        tables.append(
            Table(
                title=f"{setting}, scans by {implementation}, {len(times.seconds[VIT])} rounds".capitalize(),
                columns=["", "ms", "quartiles", f"time / {VIT}", "quartiles", "peak extra MiB"],
                rows=[
                    [
                        name,
                        *format_seconds(times.spread(name)),
                        *format_ratio(times.ratio(name, VIT)),
                        f"{peaks[name] / 2**20:.0f}",
                    ]
                    for name in models
                ],
            )
        )
