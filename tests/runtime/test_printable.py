"""No text out of a file reaches a terminal as anything but visible characters in one line."""

import sys
import unicodedata

import pytest

from timm_mvhybrid.cli.messages import report, say
from timm_mvhybrid.data import DataError
from timm_mvhybrid.models import CheckpointError
from timm_mvhybrid.runtime.errors import printable


def test_every_character_is_visible_afterwards():
    everything = "".join(chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    shown = printable(everything)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cf", "Cn", "Co", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("12 × 4 µm, größer, 漢字", "12 × 4 µm, größer, 漢字"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\nb\tc\r", "a b c "),
        ("\x9b2J\x07", "\\x9b2J\\x07"),
        ("safe\u202egnp.exe", "safe\\u202egnp.exe"),
        ("surrogate \udc80", "surrogate \\udc80"),
    ],
)
def test_what_is_escaped_and_how(text, shown):
    assert printable(text) == shown


def test_errors_and_messages_are_printable(capsys, monkeypatch):
    assert str(CheckpointError("\x1b]0;title\x07")) == "\\x1b]0;title\\x07"
    say(f"error: {DataError(chr(27) + '[2J')}\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    report({"file": "a\x1b[2J"})
    seen = capsys.readouterr()
    assert (seen.err, seen.out) == ("error: \\x1b[2J\n", "file: a\\x1b[2J\n")
