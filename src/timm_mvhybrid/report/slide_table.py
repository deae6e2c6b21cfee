"""Table of slides with their pictures → the page's section, with a search and a choice of states."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .table import Table, to_html

PART = "slide_table"
"""Name of the section's style sheet and script, for ``page(parts=...)``."""


def slide_table_section(table: Table, states: Sequence[str]) -> str:
    """Writes the table and what filters it.

    Args:
        table: Named ``slides``; its first column names the slide, its fourth the state.
        states: What may be chosen among.

    Returns:
        HTML without a frame; the page's script filters.
    """
    options = "".join(f'<option value="{escape(state)}">{escape(state)}</option>' for state in states)
    return f"""<div class="slide-table"><div class="controls">
<label for="slide-search">Find a slide<input type="search" id="slide-search" autocomplete="off" spellcheck="false"></label>
<label for="slide-state">State<select id="slide-state"><option value="">all</option>{options}</select></label>
<p class="hint" id="slide-count" role="status"></p></div>
{to_html(table)}</div>"""
