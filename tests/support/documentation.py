"""README and pages of docs/: their code, their commands, and the flags that they name."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
WITH_SUBCOMMANDS = ("analyse", "evaluate", "prepare", "report", "study")
NEEDS = re.compile(r'title="(needs [^"]+)"')


@dataclass(frozen=True)
class Snippet:
    """Fenced code.

    Args:
        page: The file it stands in.
        line: Its first line there, from 1.
        language: First word behind the fence.
        needs: What keeps it from running here ("needs a token"), as the reader sees it above the code; "" for nothing.
        code: The code.
    """

    page: Path
    line: int
    language: str
    needs: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(page: Path, language: str) -> list[Snippet]:
    """The fenced code of a page in one language, in order."""
    found = []
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and token.info.split()[:1] == [language]:
            needs = NEEDS.search(token.info)
            found.append(Snippet(page, token.map[0] + 2, language, needs[1] if needs else "", token.content))
    return found


def inline_code(page: Path) -> list[str]:
    """The code within the sentences and tables of a page."""
    tokens = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    return [
        child.content for token in tokens for child in token.children or () if child.type == "code_inline"
    ]


def command_lines(page: Path, program: str) -> list[list[str]]:
    """The words after a program's name, for each of its commands on a page, without comments."""
    lines = [line for snippet in snippets(page, "sh") for line in snippet.code.splitlines()]
    lines += [code for code in inline_code(page) if code.startswith(f"{program} ")]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == [program]]


def commands(page: Path) -> list[tuple[str, set[str]]]:
    """Each command of ours on a page, with its subcommand if it has any, and the flags that it is given."""
    found = []
    for command, *words in command_lines(page, "timm-mvhybrid"):
        nested = words[0].split("|") if command in WITH_SUBCOMMANDS and words else [""]
        flags = {word for word in words if re.fullmatch(r"--[a-z][a-z.-]+", word)}
        found += [(f"{command} {subcommand}".strip(), flags) for subcommand in nested]
    return found


def flags_in_text(page: Path) -> set[str]:
    """Flags that a page names within its sentences and tables."""
    return {flag for code in inline_code(page) for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", code)}
