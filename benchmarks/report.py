"""Figures, goals and provenance → Markdown and JSON, on the terminal and in files."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .goals import Goal, Verdict, judge
from .measure import Spread
from .provenance import Provenance

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a report.

    Attributes:
        title: Its heading.
        columns: Heads, with units.
        rows: Cells, as many as columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Renders the table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a benchmark found.

    Attributes:
        name: Of the benchmark.
        title: What was measured, in one line.
        method: How, in a few sentences.
        figures: What goals and the README refer to, by name.
        goals: Bounds on figures.
        tables: Everything measured.
        notes: What the reader must know, such as a peer that is not installed.
        judged: Whether the goals are to be judged; a smoke run does not.
    """

    name: str
    title: str
    method: str
    figures: dict[str, Spread]
    goals: list[Goal]
    tables: list[Table]
    notes: list[str] = field(default_factory=list)
    judged: bool = True

    @property
    def verdicts(self) -> list[Verdict]:
        """The goals' verdicts."""
        return judge(self.goals, self.figures if self.judged else {})

    @property
    def held(self) -> bool:
        """Whether no goal was missed, and each could be judged if goals are judged at all."""
        return not self.judged or all(verdict.word == "held" for verdict in self.verdicts)

    def markdown(self, provenance: Provenance) -> str:
        """Renders the report.

        Args:
            provenance: Where the figures come from.

        Returns:
            Markdown.
        """
        parts = [f"# {self.title}", self.method]
        notes = [*([provenance.warning] if provenance.warning else []), *self.notes]
        if not self.judged:
            notes.append("a smoke run: sizes and rounds are too small for the figures to mean anything")
        if notes:
            parts.append("\n".join(f"- {note}" for note in notes))
        if self.goals:
            parts += ["## Goals", _goals_table(self.verdicts).markdown()]
        for table in self.tables:
            parts += [f"## {table.title}", table.markdown()]
        parts += ["## Where", _provenance_table(provenance).markdown()]
        return "\n\n".join(parts) + "\n"

    def json(self, provenance: Provenance) -> str:
        """Renders the report for programs.

        Args:
            provenance: Where the figures come from.

        Returns:
            JSON.
        """
        content: dict[str, Any] = {
            "benchmark": self.name,
            "title": self.title,
            "judged": self.judged,
            "figures": {name: dataclasses.asdict(figure) for name, figure in self.figures.items()},
            "goals": [
                {**dataclasses.asdict(verdict.goal), "measured": verdict.measured, "verdict": verdict.word}
                for verdict in self.verdicts
            ],
            "tables": [dataclasses.asdict(table) for table in self.tables],
            "notes": self.notes,
            "provenance": dataclasses.asdict(provenance),
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def write(self, folder: Path, provenance: Provenance) -> list[Path]:
        """Writes ``<name>_<hardware>_<date>.md`` and ``.json``; files appear whole or not at all.

        Args:
            folder: Where to; made if absent.
            provenance: Where the figures come from.

        Returns:
            The paths.
        """
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self.name}_{provenance.slug}_{provenance.date[:10]}"
        texts = {".md": self.markdown(provenance), ".json": self.json(provenance)}
        return [_replace(folder / (stem + suffix), text) for suffix, text in texts.items()]


def format_seconds(value: Spread) -> tuple[str, str]:
    """Formats seconds as milliseconds: the median, and the quartiles."""
    return f"{value.median * 1e3:.4g}", f"{value.low * 1e3:.4g} – {value.high * 1e3:.4g}"


def format_ratio(value: Spread) -> tuple[str, str]:
    """Formats a ratio: the median, and the quartiles."""
    return f"{value.median:.3g}", f"{value.low:.3g} – {value.high:.3g}"


def _goals_table(verdicts: Sequence[Verdict]) -> Table:
    rows = [
        [
            verdict.goal.figure,
            f"{verdict.goal.relation} {verdict.goal.bound:g}",
            "–" if verdict.measured is None else f"{verdict.measured:.3g}",
            verdict.word,
        ]
        for verdict in verdicts
    ]
    return Table(title="Goals", columns=["figure", "goal", "measured", "verdict"], rows=rows)


def _provenance_table(provenance: Provenance) -> Table:
    entries = dataclasses.asdict(provenance)
    entries["packages"] = ", ".join(f"{name} {version}" for name, version in provenance.packages.items())
    entries["instructions"] = ", ".join(provenance.instructions) + (
        "" if "amx_bf16" in provenance.instructions else " (no AMX)"
    )
    rows = [[name.replace("_", " "), str(value)] for name, value in entries.items() if value is not None]
    return Table(title="Where", columns=["what", "value"], rows=rows)


def _replace(path: Path, text: str) -> Path:
    """Writes a file under a temporary name, then gives it its own."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        # a temporary file is private to its owner; a result is not
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
