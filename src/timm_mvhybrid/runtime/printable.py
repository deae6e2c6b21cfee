"""Text of unknown origin → text that a terminal shows and does not obey."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Escapes what is no visible character, so that names out of a file cannot steer a terminal.

    Args:
        text: Any text.

    Returns:
        The text in one line: line breaks and tabs as blanks; other control, format and unassigned characters, escape
        codes and directions of writing among them, as Python writes them (``\x1b``).
    """
    return "".join(
        character
        if character.isprintable()
        else " "
        if character in "\t\n\r"
        else character.encode("unicode_escape").decode()
        for character in text
    )
