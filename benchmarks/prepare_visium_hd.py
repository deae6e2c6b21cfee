"""Bins of Visium HD added up to squares of a patch's size, beside dense arrays and beside pandas."""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from .agreement import DisagreementError
from .bin_contenders import CONTENDERS
from .generated_bins import BIN_UM, write_bins
from .goals import Goal
from .measure import Contender, Effort, Spread, measure, spread
from .provenance import ROOT
from .report import Report, Table, format_ratio, format_seconds
from .settings import Settings

OURS, BANDS, ROWS, PANDAS = CONTENDERS
JUDGED = (BANDS, PANDAS)
"""Peers of which the better one counts, the faster for time and the leaner for memory."""
TIME, MEMORY = (
    "time, the faster of dense bands and pandas / ours",
    "peak memory, ours / the leaner of dense bands and pandas",
)
GOALS = [Goal(figure=TIME, relation="≥", bound=5), Goal(figure=MEMORY, relation="≤", bound=0.25)]
PANDAS_BYTES = {"value": 52, "bin": 120}
"""About what pandas needs for each; where that is more than nine tenths of what is free, it is left out."""

Outcome = dict[str, Any]


def run(settings: Settings, side_mm: float, filled: float, num_genes: int) -> Report:
    """Generates a sample, and adds its bins up in all ways, each in a process of its own.

    Args:
        settings: The options.
        side_mm: Side of the sample.
        filled: Fraction of the values of bins × genes that are above 0.
        num_genes: Genes.

    Returns:
        The report.

    Raises:
        DisagreementError: If two ways give other sums.
    """
    if settings.quick:
        side_mm, num_genes = 0.448, 50
    outcomes: dict[str, list[Outcome]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        outs = Path(folder, "outs")
        num_values = write_bins(outs, side_mm=side_mm, num_genes=num_genes, filled=filled)
        num_bins = round(side_mm * 1000 / BIN_UM) ** 2
        needed = num_values * PANDAS_BYTES["value"] + num_bins * PANDAS_BYTES["bin"]
        names = [name for name in CONTENDERS if name != PANDAS or needed < 0.9 * _free_bytes()]
        contenders = [
            Contender(name=name, call=partial(_in_a_process, name, outs, outcomes[name], settings.threads))
            for name in names
        ]
        # a round takes minutes where the sample is large
        rounds = Effort(
            budget_s=settings.seconds, min_rounds=2 if settings.quick else 1, max_rounds=7, warmups=0
        )
        measure(contenders, rounds)
    if len({outcome["digest"] for name in names for outcome in outcomes[name]}) > 1:
        raise DisagreementError("the contenders give other sums")
    times = {name: [outcome["seconds"] for outcome in outcomes[name]] for name in names}
    peaks = {name: max(outcome["peak_bytes"] for outcome in outcomes[name]) for name in names}
    judged = [name for name in JUDGED if name in names]
    faster = min(judged, key=lambda name: spread(times[name]).median)
    ratios = {
        name: spread([theirs / mine for theirs, mine in zip(times[name], times[OURS], strict=True)])
        for name in names
    }
    memory = peaks[OURS] / min(peaks[name] for name in judged)
    return Report(
        name="prepare_visium_hd",
        title=(
            f"Bins of {BIN_UM} µm added up to squares of 112 µm: {num_bins:,} bins × {num_genes:,} genes, "
            f"{num_values:,} values above 0"
        ),
        method=(
            "All ways gave the same sums. Each runs in a process of its own, in interleaved rounds, from Space Ranger's files to "
            "a sparse matrix of squares × genes, matching barcodes with positions. Seconds and memory count from after the "
            "imports. Dense arrays need the bins row by row, which the format does not promise."
        ),
        figures={TIME: ratios[faster], MEMORY: Spread(median=memory, low=memory, high=memory)},
        goals=GOALS,
        tables=[
            Table(
                title=f"{len(times[OURS])} rounds",
                columns=[
                    "",
                    "ms",
                    "quartiles",
                    "time / ours",
                    "quartiles",
                    "CPU / s",
                    "peak memory / MiB",
                    "memory / ours",
                ],
                rows=[
                    [
                        name,
                        *format_seconds(spread(times[name])),
                        *format_ratio(ratios[name]),
                        f"{spread([outcome['cpu_seconds'] for outcome in outcomes[name]]).median:.1f}",
                        f"{peaks[name] / 2**20:.0f}",
                        f"{peaks[name] / peaks[OURS]:.2f}",
                    ]
                    for name in names
                ],
            )
        ],
        notes=[
            *(
                []
                if PANDAS in names
                else [
                    f"{PANDAS}: left out, because it would need about {needed / 2**30:.0f} GiB, and nine tenths of what is free is less"
                ]
            ),
            f"{ROWS}: not judged; how much memory dense arrays take follows from how few bins they hold at a time.",
        ],
        judged=not settings.quick,
    )


def _in_a_process(name: str, outs: Path, outcomes: list[Outcome], threads: int) -> None:
    command = [sys.executable, "-m", "benchmarks.bin_contenders", name, str(outs)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip() or f'ended with {done.returncode}'}")
    outcomes.append(json.loads(done.stdout))


def _free_bytes() -> int:
    (line,) = (
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")
    )
    return int(line.split()[1]) * 1024
