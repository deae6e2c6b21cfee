"""Folder of embedded slides → one page that shows them all, its pictures in a folder beside it, and the numbers as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data import DataError
from ..report.page import page, section, standing_warnings
from ..report.slide_table import PART, slide_table_section
from ..report.table import Cell, Table, number_cell, text_cell, to_html
from ..runtime.atomic_file import claimed, make_folder, write_files
from ..runtime.codec import decode, dump, encode
from ..runtime.digest import file_fingerprint
from ..runtime.errors import EvaluationError, ParameterError, TimmMVHybridError
from ..runtime.extras import require
from ..runtime.provenance import collect_provenance
from .feature_colours import ColourBasis, fit_colours
from .overview_pictures import draw_components, draw_slide, draw_tiles
from .overview_rows import FoundSlide, OverviewRow, busy_seconds, find_slides

PAGE, NUMBERS, PICTURES = "index.html", "overview.json", "pictures"
_SCHEMA = 1
OnSlide = Callable[[str, int, int], None]
"""Called with what is being done, how many slides are, and how many there are."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Overview:
    """What is known of a cohort.

    Attributes:
        page: The page.
        rows: Its slides, by name.
        basis: What colours the features; None if no slide has features with places.
        notes: What must be known of the pictures, a sentence each.
    """

    page: Path
    rows: tuple[OverviewRow, ...]
    basis: ColourBasis | None
    notes: tuple[str, ...]

    @property
    def problems(self) -> tuple[OverviewRow, ...]:
        """Slides that are not done."""
        return tuple(row for row in self.rows if row.state != "done")

    def summary(self) -> dict[str, Any]:
        """Adds up the slides; None where nothing is known."""
        done = [row for row in self.rows if row.state == "done"]
        seconds, tiles = busy_seconds(done), sum(row.tiles for row in done)
        # slides without a time, as those of an older file, would add tiles that took none
        timed = sum(row.tiles for row in done if row.seconds and row.finished)
        return {
            "slides": len(self.rows),
            **{state: num for state, num in sorted(Counter(row.state for row in self.rows).items())},
            "tiles": tiles,
            "tissue_mm2": _total(row.tissue_mm2 for row in done),
            "tiled_mm2": _total(row.tiled_mm2 for row in done),
            "tiles_per_second": timed / seconds if seconds else None,
        }


def write_overview(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    slides: str | Path | None = None,
    picture_size_px: int = 384,
    num_workers: int = 0,
    words: Callable[[str], str] = str,
    on_slide: OnSlide | None = None,
) -> Overview:
    """Shows the slides of a folder on one page: pictures, features as colours, areas, throughput, failures.

    An earlier page of the same folder is replaced; of slides that are the same since, the picture is kept.

    Args:
        folder: ``<slide_id>.h5`` files of ``embed``, with ``cohort.jsonl`` or without.
        output: Folder to write: ``index.html``, ``overview.json`` and ``pictures``; None takes ``overview`` in the folder.
        slides: Folder of the slides, for files whose slide is not where it was embedded; None looks beside the h5.
        picture_size_px: Longer side of the pictures.
        num_workers: Threads that draw; 0 draws in this one.
        words: Turns a recorded problem into the words of its reader, such as parameters into flags.
        on_slide: Called after each slide.

    Raises:
        DataError: There is no such folder, or nothing in it was embedded.
        EvaluationError: The output holds another page.
        MissingPackageError: scikit-learn is not installed.
        OutputError: The disk does not take it, or another process writes it.
        ParameterError: A number is out of range.
    """
    if picture_size_px < 16 or num_workers < 0:
        raise ParameterError(
            f"`picture_size_px` must be at least 16 and `num_workers` at least 0, not {picture_size_px} and {num_workers}"
        )
    require("sklearn.decomposition")
    found = find_slides(folder, slides)
    found = [replace(one, row=replace(one.row, problem=words(one.row.problem))) for one in found]
    output = Path(folder) / "overview" if output is None else Path(output)
    if (output / PAGE).exists() and not (output / NUMBERS).exists():
        raise EvaluationError(f"{output / PAGE}: exists and is another page; choose another `output`")
    make_folder(output / PICTURES)
    with claimed(output / NUMBERS):
        basis, coloured, notes = _fit(found, on_slide)
        artist = _Artist(output, _earlier_rows(output / NUMBERS), basis, coloured, picture_size_px)
        with ThreadPoolExecutor(max(num_workers, 1)) as pool:
            rows = []
            for row in pool.map(artist.draw, found):
                rows.append(row)
                if on_slide is not None:
                    on_slide("drawing", len(rows), len(found))
        overview = Overview(page=output / PAGE, rows=tuple(rows), basis=basis, notes=tuple(notes))
        options = {"slides": str(slides or ""), "picture_size_px": picture_size_px}
        write_files(
            {
                output / PAGE: _page(Path(folder).resolve().name, overview, options),
                output / NUMBERS: _numbers(overview),
            }
        )
    return overview


def _fit(
    found: Sequence[FoundSlide], on_slide: OnSlide | None
) -> tuple[ColourBasis | None, set[str], list[str]]:
    """Fits colours to the slides of the model that most were embedded with.

    Returns:
        The basis, the slides that it colours, and what must be known.
    """
    groups: dict[tuple[str, str, int], list[FoundSlide]] = {}
    for slide in found:
        if slide.patches is not None and slide.patches.coords is not None:
            key = (slide.row.model, slide.row.weights_sha256, slide.patches.embedding_dim)
            groups.setdefault(key, []).append(slide)
    if not groups:
        return None, set(), []
    largest = max(sorted(groups), key=lambda key: len(groups[key]))
    members = groups[largest]
    readable = [slide.patches.path for slide in members if slide.patches is not None]
    basis = fit_colours(readable, on_file=on_slide and (lambda num, total: on_slide("colours", num, total)))
    shares = ", ".join(f"{share:.0%}" for share in basis.explained)
    notes = [
        f"Colours: the first three principal components of the features as red, green and blue, one basis for the whole "
        f"cohort, from {basis.num_rows:,} patches of {len(members):,} slides; they hold {shares} of the variance. Equal "
        "colours mean alike features, on whichever slide."
    ]
    others = sum(map(len, groups.values())) - len(members)
    if others:
        notes.append(
            f"{others:,} of {others + len(members):,} slides have other weights or another model than most, {largest[0]}, so that "
            "their features have no colours here; embed them again, or give them a folder of their own."
        )
    return basis, {slide.row.slide_id for slide in members}, notes


@dataclass(frozen=True, eq=False)
class _Artist:
    """Draws slides, and keeps what was drawn of the same file before."""

    output: Path
    earlier: dict[str, OverviewRow]
    basis: ColourBasis | None
    coloured: set[str]
    size_px: int

    def draw(self, found: FoundSlide) -> OverviewRow:
        patches, row = found.patches, found.row
        if patches is None or patches.coords is None:
            return row
        row = replace(row, stamp=f"{file_fingerprint(patches.path)} {found.slide or ''} {self.size_px}")
        before = self.earlier.get(row.slide_id)
        picture = f"{PICTURES}/{row.slide_id}.jpg"
        if before is not None and before.stamp == row.stamp and (self.output / picture).is_file():
            row = replace(row, picture=picture, tissue_mm2=before.tissue_mm2, problem=before.problem)
        else:
            row = self._picture(found, replace(row, picture=picture))
        if self.basis is not None and row.slide_id in self.coloured:
            components = f"{PICTURES}/{row.slide_id}.png"
            try:
                draw_components(patches, self.basis, self.output / components, self.size_px)
            except DataError as error:
                return replace(row, state="unreadable", problem=str(error))
            row = replace(row, components=components)
        return row

    def _picture(self, found: FoundSlide, row: OverviewRow) -> OverviewRow:
        assert found.patches is not None
        if found.slide is not None:
            try:
                area = draw_slide(found.slide, found.patches, self.output / row.picture, self.size_px)
                return replace(row, tissue_mm2=area)
            # of libraries that read foreign files, too; a DataError is a ValueError
            except (ValueError, OSError, RuntimeError) as error:
                row = replace(row, problem="; ".join(filter(None, [row.problem, f"no picture: {error}"])))
        draw_tiles(found.patches, self.output / row.picture, self.size_px)
        return row


def _earlier_rows(file: Path) -> dict[str, OverviewRow]:
    """Reads the slides of an earlier page, which spare drawing; nothing where it is of another version."""
    try:
        rows = [decode(OverviewRow, row, str(file)) for row in json.loads(file.read_text("utf-8"))["rows"]]
    except (OSError, ValueError, KeyError, TypeError, TimmMVHybridError):
        return {}
    return {row.slide_id: row for row in rows}


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _numbers(overview: Overview) -> str:
    basis = overview.basis
    return dump(
        {
            "schema": _SCHEMA,
            "summary": overview.summary(),
            "colours": None
            if basis is None
            else {
                "num_rows": basis.num_rows,
                "explained": basis.explained.tolist(),
                "low": basis.low.tolist(),
                "high": basis.high.tolist(),
            },
            "rows": [encode(row) for row in overview.rows],
        }
    )


def _page(name: str, overview: Overview, options: dict[str, Any]) -> str:
    rows, problems = overview.rows, overview.problems
    models = list(dict.fromkeys(row.model for row in rows if row.model))
    random = {row.model for row in rows if row.weights_sha256 == "random"}
    sections = [section("Cohort", to_html(summary_table(overview)))]
    if problems:
        content = f'<div class="problems">{to_html(problem_table(problems))}</div>'
        sections.append(section("Not done", content))
    states = sorted({row.state for row in rows})
    sections.append(section("Slides", slide_table_section(_slides(rows), states)))
    return page(
        title=f"Cohort {name}",
        lead=f"{len(rows):,} slides; features of {', '.join(models) or 'no model'}",
        warnings=standing_warnings(generated=[], random=sorted(random)),
        notes=[
            *overview.notes,
            "Tissue is what is stained on a thumbnail of 1,024 px, by the mask that chooses tiles; where the slide is not at "
            "hand it is unknown, and its tiles are drawn on white.",
            "Tiles/s of a slide is by its own wall time, from its opening to its file; slides overlap, so that the cohort's "
            "is higher: it counts the time in which any slide was worked on.",
        ],
        sections=sections,
        provenance={"Overview": collect_provenance(seed=0, options=options, data={})},
        footer=f"The same numbers stand in {NUMBERS}.",
        parts=[PART],
        pictures=True,
    )


def summary_table(overview: Overview) -> Table:
    """Makes the table of the whole cohort, one row."""
    summary = overview.summary()
    states = [name for name in ("done", "failed", "empty", "missing", "unreadable") if name in summary]

    def entry(name: str, digits: int) -> Callable[[Any], Cell]:
        return lambda _: number_cell(summary[name], digits)

    return Table.of(
        "cohort",
        "Slides by state, area of tissue and of tiles, and throughput.",
        [overview],
        [
            ("Slides", entry("slides", 0)),
            *((name.capitalize(), entry(name, 0)) for name in states),
            ("Tiles", entry("tiles", 0)),
            ("Tissue, mm²", entry("tissue_mm2", 1)),
            ("Tiles, mm²", entry("tiled_mm2", 1)),
            ("Tiles/s", entry("tiles_per_second", 1)),
        ],
        num_text_columns=0,
    )


def problem_table(rows: Sequence[OverviewRow]) -> Table:
    """Makes the table of slides that are not done, with cause and remedy."""
    return Table.of(
        "problems",
        "Slides that are not done: cause, and what to do.",
        rows,
        [
            ("Slide", lambda row: text_cell(row.slide_id)),
            ("State", lambda row: text_cell(row.state)),
            ("Attempts", lambda row: number_cell(row.attempts, 0)),
            ("Cause and remedy", lambda row: text_cell(row.problem)),
        ],
        num_text_columns=4,
    )


def _slides(rows: Sequence[OverviewRow]) -> Table:
    def picture(address: str, text: str) -> Cell:
        return Cell(text=text, picture=address) if address else Cell(text="–")

    return Table.of(
        "slides",
        "Every slide: tiles drawn on it, features as colours, area, throughput; a click opens a picture.",
        rows,
        [
            ("Slide", lambda row: text_cell(row.slide_id)),
            ("Tiles drawn", lambda row: picture(row.picture, f"Tiles of {row.slide_id}")),
            ("Features", lambda row: picture(row.components, f"Features of {row.slide_id}")),
            ("State", lambda row: text_cell(row.state)),
            ("Remark", lambda row: text_cell(row.problem)),
            ("Tiles", lambda row: number_cell(row.tiles, 0)),
            ("Tissue, mm²", lambda row: number_cell(row.tissue_mm2, 2)),
            ("Tiles, mm²", lambda row: number_cell(row.tiled_mm2, 2)),
            ("Tiles/s", lambda row: number_cell(row.tiles_per_second, 1)),
            ("Seconds", lambda row: number_cell(row.seconds, 1)),
            ("Attempts", lambda row: number_cell(row.attempts, 0)),
        ],
        num_text_columns=5,
    )
