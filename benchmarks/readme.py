"""Committed results → the table of ratios in README.md."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .provenance import ROOT
from .report import RESULTS

BEGIN, END = "<!-- ratios: written by python -m benchmarks readme -->", "<!-- end of ratios -->"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        benchmark: Whose figure.
        figure: Name of the figure.
        label: What was compared, for the reader.
    """

    benchmark: str
    figure: str
    label: str


def rows() -> list[Row]:
    """Lists what the README shows."""
    ours, mamba, mambapy = "ours", "mamba_ssm selective_scan_ref", "mambapy pscan"
    vit = "timm ViT-S/16, depth 24"
    scan, both = "selective scan", "forward + backward"
    return [
        Row(
            "scan",
            f"forward time, {mamba} / {ours}",
            f"{scan}, forward: time of mamba-ssm's plain scan / ours",
        ),
        Row(
            "scan", f"{both} time, {mamba} / {ours}", f"{scan}, {both}: time of mamba-ssm's plain scan / ours"
        ),
        Row("scan", f"{both} time, {mambapy} / {ours}", f"{scan}, {both}: time of mambapy / ours"),
        Row("scan", f"{both} memory, {ours} / {mambapy}", f"{scan}, {both}: memory of ours / mambapy"),
        Row(
            "einfft",
            f"{both} time, complex FFT, four real products / {ours}",
            f"EinFFT, {both}: time of the complex FFT form / ours",
        ),
        *(
            Row(
                "model",
                f"float32 inference, batch {batch}: mvhybrid / {vit}",
                f"`mvhybrid_small`, batch {batch}: latency / ViT",
            )
            for batch in (1, 8, 32)
        ),
        Row(
            "model",
            f"bfloat16 autocast inference, batch 32: mvhybrid / {vit}",
            "`mvhybrid_small`, batch 32, bfloat16 autocast: latency / ViT",
        ),
        Row(
            "model",
            f"float32 training step, batch 8: mvhybrid / {vit}",
            "`mvhybrid_small`, batch 8: training step / ViT",
        ),
        *(
            Row(
                "model",
                f"float32 inference, batch 32: {name} / {vit}",
                f"`{name}_small`, batch 32: latency / ViT",
            )
            for name in ("hydra_hybrid", "hydra_einfft", "vim_einfft")
        ),
    ]


def render(results: Path = RESULTS) -> str:
    """Writes the table; a ratio that no committed result holds has no row.

    Args:
        results: Folder of the results.

    Returns:
        Markdown, from marker to marker.
    """
    newest = {name: found for name in ("scan", "einfft", "model") if (found := _newest(results, name))}
    lines = []
    for row in rows():
        if row.benchmark in newest and row.figure in newest[row.benchmark]["figures"]:
            figure = newest[row.benchmark]["figures"][row.figure]
            numbers = [f"{figure[key]:.3g}" for key in ("median", "low", "high")]
            lines.append(f"| {row.label} | {numbers[0]} | {numbers[1]} – {numbers[2]} |")
    if not lines:
        return f"{BEGIN}\nNo figures are committed yet.\n{END}"
    where = {
        f"{origin['cpu']}, {origin['threads']} threads, torch {origin['packages']['torch']}, {origin['date'][:10]}"
        for origin in (result["provenance"] for result in newest.values())
    }
    table = "\n".join(["| ratio | median | quartiles |", "| --- | --- | --- |", *lines])
    return f"{BEGIN}\nMeasured on {'; '.join(sorted(where))}.\n\n{table}\n{END}"


def update(readme: Path = ROOT / "README.md", results: Path = RESULTS) -> None:
    """Replaces the table in the README.

    Args:
        readme: The file.
        results: Folder of the results.

    Raises:
        ValueError: The file has no markers.
    """
    text = readme.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{readme.name} has no line {BEGIN}")
    readme.write_text(pattern.sub(lambda _: render(results), text), encoding="utf-8")


def _newest(folder: Path, benchmark: str) -> dict[str, Any] | None:
    """Reads the newest judged result of a benchmark."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"{benchmark}_*.json")]
    results = [result for result in results if result["judged"]]
    return max(results, key=lambda result: result["provenance"]["date"], default=None)
