"""``timm-mvhybrid doctor``: this installation → what works, and what to do where it does not."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ..doctor import COMPLAINTS, Diagnosis, diagnose


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what is installed, which scans run, whether the models work, and what to do; exit 1 if they do not."""

    json: bool = False
    """Print JSON instead of text."""
    all: bool = False
    """Print the fixes of all common problems, not only those that apply here."""

    def run(self) -> int:
        """Runs the command."""
        diagnosis = diagnose()
        if self.json:
            print(json.dumps(_plain(diagnosis, everything=self.all), indent=2, ensure_ascii=False))
        else:
            _print(diagnosis, everything=self.all)
        return 0 if diagnosis.works else 1


def _plain(diagnosis: Diagnosis, *, everything: bool) -> dict[str, Any]:
    """Turns a diagnosis into what JSON holds."""
    result = {"works": diagnosis.works, **dataclasses.asdict(diagnosis)}
    for scan in result["implementation"]["scans"]:
        scan["dtype"] = str(scan["dtype"]).removeprefix("torch.")
    if everything:
        result["common_complaints"] = [dataclasses.asdict(remedy) for remedy in COMPLAINTS]
    return result


def _print(diagnosis: Diagnosis, *, everything: bool) -> None:
    """Prints a diagnosis: in tables for a terminal, in plain lines for a pipe."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    is_terminal = sys.stdout.isatty()

    def table(title: str, *columns: str, rows: Sequence[tuple[str, ...]]) -> None:
        if not is_terminal:
            print(f"{title}:")
            for row in rows:
                print("  " + "  ".join(cell for cell in row if cell))
            return
        laid_out = Table(*columns, title=title, title_justify="left")
        for row in rows:
            laid_out.add_row(*row)
        Console(highlight=False, markup=False).print(laid_out)

    packages = [("Python", diagnosis.python, diagnosis.system)]
    packages += [(one.name, one.version or "not installed", one.note) for one in diagnosis.packages]
    table("Installed", "package", "version", "note", rows=packages)
    table("CUDA", "device", rows=[(name,) for name in diagnosis.cuda])
    variables = [(name, value or "not set") for name, value in diagnosis.environment.items()]
    table(
        f"Hub: weights are looked for at {diagnosis.organization}",
        "variable",
        "value",
        rows=variables,
    )
    print(f"Scans: {diagnosis.implementation}")
    table("Scans on CUDA", "operation", "implementation", rows=list(diagnosis.on_cuda.items()))
    trials = [
        (one.device, one.what, "works" if one.works else "FAILS", one.detail) for one in diagnosis.trials
    ]
    table("Tried", "device", "what", "", "detail", rows=trials)
    if diagnosis.found:
        console.print("Found here:", style="bold")
        for remedy in diagnosis.found:
            console.print(f"- {'FATAL: ' if remedy.fatal else ''}{remedy.complaint}\n  → {remedy.remedy}")
    if everything:
        console.print("Common problems:", style="bold")
        for remedy in COMPLAINTS:
            console.print(f"- {remedy.complaint}\n  → {remedy.remedy}")
    console.print(
        "Our models work here." if diagnosis.works else "Our models FAIL here; see above.",
        style="bold",
    )
    if not everything:
        console.print("'timm-mvhybrid doctor --all' lists fixes of all common problems.")
