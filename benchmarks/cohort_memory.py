"""Peak memory of ``embed INPUT --output DIR`` by the size of the slide: a slide of 600 tiles beside one of 60,000."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from .goals import Goal
from .measure import Spread, spread
from .peers import MissingPeerError
from .processes import SAMPLE_S, run_command
from .report import Report, Table
from .settings import Settings

TILE_PX = 256
SIDES = (25, 245)
"""Tiles on a side of the slides: 625 and 60,025."""
QUICK_SIDES = (4, 8)
MODEL = "test_vit12"
NUM_READERS = 2
FIGURE = "peak memory, {large:,} tiles / {small:,}, {what}"
WHOLE, MAIN = "all processes", "the command's own process"


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most that a run held at a time.

    Attributes:
        whole_mib: Of all its processes, in MiB.
        main_mib: Of the command's own.
        reader_mib: Of the largest other one.
        seconds: Of the run.
    """

    whole_mib: float
    main_mib: float
    reader_mib: float
    seconds: float


def run(settings: Settings) -> Report:
    """Embeds a small and a large slide in turn.

    Args:
        settings: The options.

    Returns:
        The report.

    Raises:
        MissingPeerError: The system does not tell proportional sizes.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        raise MissingPeerError("/proc/self/smaps_rollup: only Linux tells how much memory processes share")
    sides = QUICK_SIDES if settings.quick else SIDES
    small, large = (side * side for side in sides)
    peaks: dict[int, list[Peak]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        slides = {side: write_slide(Path(folder, f"{side}.tif"), side) for side in sides}
        for number in range(1 if settings.quick else 3):
            for side in sides:
                peaks[side].append(_embed(slides[side], Path(folder, f"out{number}"), settings.threads))
    figures = {
        FIGURE.format(large=large, small=small, what=what): _ratio(peaks, sides, name)
        for what, name in ((WHOLE, "whole_mib"), (MAIN, "main_mib"))
    }
    rows = [
        [f"{side * side:,}", f"{side * TILE_PX:,}", *(f"{getattr(peak, name):,.0f}" for name in vars(peak))]
        for side in sides
        for peak in peaks[side]
    ]
    columns = [
        "tiles",
        "side, px",
        "all processes, MiB",
        "the command's own",
        "the largest reader",
        "seconds",
    ]
    return Report(
        name="cohort_memory",
        title="Peak memory of embedding a slide, by its size",
        method=(
            f"Generated slides of tissue all over, tiles of {TILE_PX} px, with their levels; {MODEL} on the CPU with "
            f"{NUM_READERS} readers, each run in a process of its own. Proportional set size every {SAMPLE_S:g} s."
        ),
        figures=figures,
        goals=[Goal(figure=FIGURE.format(large=large, small=small, what=WHOLE), relation="≤", bound=1.1)],
        tables=[Table(title="Runs in turn", columns=columns, rows=rows)],
        judged=not settings.quick,
    )


def write_slide(path: Path, side: int) -> Path:
    """Writes a pyramid of so many tiles on a side, of which each is the same one: a large slide of few megabytes a level."""
    y, x = np.mgrid[:TILE_PX, :TILE_PX]
    tile = np.stack([200 + x % 3, 60 + x // 4, 120 + y // 4], axis=-1).astype(np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level in range(0, 7, 2):
            size = max(side * TILE_PX >> level, 1)
            across = -(-size // TILE_PX)
            writer.write(
                (tile for _ in range(across * across)),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 80},
                subfiletype=int(level > 0),
                metadata=None,
                **({"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"} if level == 0 else {}),
            )
            if size <= TILE_PX:
                break
    return path


def _ratio(peaks: dict[int, list[Peak]], sides: tuple[int, int], name: str) -> Spread:
    pairs = zip(*(peaks[side] for side in sides), strict=True)
    return spread([getattr(large, name) / getattr(small, name) for small, large in pairs])


def _embed(slide: Path, output: Path, threads: int) -> Peak:
    command: list[str | Path] = [sys.executable, "-m", "timm_mvhybrid", "embed", slide, "--model", MODEL]
    command += ["--output", output, "--device", "cpu", "--num-workers", str(NUM_READERS)]
    command += ["--patch-size", str(TILE_PX), "--batch-size", "64"]
    found = run_command(command, environment={"OMP_NUM_THREADS": str(threads)})
    whole, main, reader = (
        (found_bytes or 0) / (1 << 20)
        for found_bytes in (found.peak_bytes, found.own_peak_bytes, found.other_peak_bytes)
    )
    return Peak(whole_mib=whole, main_mib=main, reader_mib=reader, seconds=found.seconds)
