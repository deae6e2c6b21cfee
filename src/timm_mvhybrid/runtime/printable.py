"""Text of unknown origin → text that a terminal shows and does not interpret."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Escapes whatever is not a visible character, so that names in a file cannot control a terminal.

    Returns:
        The text in one line: line breaks and tabs as blanks; other control, format and unassigned characters, including
        escape codes and changes of writing direction, as Python writes them (``\x1b``).
    """
    return "".join(
        character
        if character.isprintable()
        else " "
        if character in "\t\n\r"
        else character.encode("unicode_escape").decode()
        for character in text
    )
