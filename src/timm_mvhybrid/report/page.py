"""One file that holds everything: tables + charts + provenance → HTML without outside resources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from ..runtime.provenance import Provenance
from .presentation import presentation_of
from .result import Result
from .table import Table, to_html


def result_page(result: Result, tables: Sequence[Table]) -> str:
    """Writes the page of one result."""
    first, *rest = tables
    models = ", ".join(model.label for model in result.models)
    presentation = presentation_of(result)
    sections = [section("Scores", to_html(first)), *presentation.sections(result)]
    sections += [section(table.name.replace("-", " ").capitalize(), to_html(table)) for table in rest]
    return page(
        title=presentation.heading(result),
        lead=models,
        warnings=result_warnings([result]),
        notes=result.notes,
        sections=sections,
        provenance={result.dataset: result.provenance},
    )


def result_warnings(results: Sequence[Result]) -> list[str]:
    """Finds what a reader must know before any number."""
    return standing_warnings(
        generated=[result.dataset for result in results if result.provenance.generated],
        random=[model.label for result in results for model in result.models if model.weights == "random"],
    )


def standing_warnings(*, generated: Sequence[str], random: Sequence[str]) -> list[str]:
    """Words what every page says of generated data and of models that were never trained, by their names."""
    warnings = []
    if generated:
        warnings.append(
            f"Generated data, drawn by a program and not measured: {', '.join(dict.fromkeys(generated))}. "
            "The numbers say nothing about tissue."
        )
    if random:
        warnings.append(
            f"Random weights, never trained: {', '.join(dict.fromkeys(random))}. "
            "The numbers say nothing about what a trained model would reach."
        )
    return warnings


def section(title: str, content: str, hint: str = "") -> str:
    """Writes a titled part of the page."""
    below = f'<p class="hint">{escape(hint)}</p>' if hint else ""
    return f"<section><h2>{escape(title)}</h2>{below}{content}</section>"


def figure(name: str, svg: str, caption: str = "", *, scroll: bool = False) -> str:
    """Writes a chart with its caption."""
    inner = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{svg}</div>'
        if scroll
        else svg
    )
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure data-plot="{escape(name)}">{inner}{below}</figure>'


def page(
    *,
    title: str,
    lead: str,
    warnings: Sequence[str],
    notes: Sequence[str],
    sections: Sequence[str],
    provenance: dict[str, Provenance],
    footer: str = "The same numbers stand in results.json.",
    parts: Sequence[str] = (),
    pictures: bool = False,
) -> str:
    """Writes a whole page.

    Args:
        title: Heading and name of the page.
        lead: What stands below it.
        warnings: What must be known before any number.
        notes: What else must be known.
        sections: See ``section``.
        provenance: Name → where numbers come from.
        footer: Its last sentence.
        parts: Further style sheets and scripts of this room that its sections need.
        pictures: Whether it shows picture files that lie beside it; otherwise it loads nothing at all.
    """
    names = [file.name for file in files(__package__).iterdir() if file.name.split(".")[0] in parts]
    style = _joined("page.css", *(name for name in sorted(names) if name.endswith(".css")))
    script = _joined("page.js", *(name for name in sorted(names) if name.endswith(".js")))
    warned = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in warnings)
    noted = "".join(f"<li>{escape(note)}</li>" for note in notes)
    # of a file that is opened without a server the origin is no 'self'
    images = "data: 'self' file:" if pictures else "data:"
    body = "".join(sections)
    if noted:
        body += section("Notes", f"<ul>{noted}</ul>")
    body += section("Provenance", "".join(_provenance(name, one) for name, one in provenance.items()))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src {images}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><div><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></div>
<button type="button" id="theme">Dark</button></header>
<main>{warned}{body}</main>
<footer>Written by timm_mvhybrid. {escape(footer)}</footer>
<script>
{script}</script>
</body>
</html>
"""


def json_element(name: str, value: Any) -> str:
    """Writes data that the page's script finds by the element's id."""
    # "</" would end the script element within which the data stand
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    data = data.replace("</", "<\\/").replace("<!--", "<\\u0021--")
    return f'<script type="application/json" id="{escape(name)}">{data}</script>'


def _joined(*names: str) -> str:
    return "".join((files(__package__) / name).read_text(encoding="utf-8") for name in names)


def _provenance(name: str, provenance: Provenance) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in sorted(provenance.versions.items()))
    options = json.dumps(provenance.options, indent=1, ensure_ascii=False, default=str)
    data = "\n".join(f"{digest}  {path}" for path, digest in sorted(provenance.data.items()))
    inputs = "1 input" if len(provenance.data) == 1 else f"{len(provenance.data)} inputs"
    return (
        f"<h3>{escape(name)}</h3><p>{escape(provenance.created)}, seed {provenance.seed}, "
        f"{escape(provenance.platform)}. {escape(versions)}.</p>"
        f"<details><summary>Options</summary><pre>{escape(options)}</pre></details>"
        f"<details><summary>SHA-256 of {inputs}</summary><pre>{escape(data)}</pre></details>"
    )
