"""Which tests compare numbers that rounding may move: those that do so themselves, or by what they call.

A test is read together with the functions, classes, fixtures and constants of tests/ that it names, directly or through
others. What it names of the package under test does not count, for that is what rounds.
"""

import ast
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
_TOLERANCES = r"allclose|assert_close|\bapprox|almost_equal|relative_error|assert_accurate|gradcheck|[ar]tol="
_EQUALITIES = r"array_equal|\.equal\("
_FRACTION = r"\d\.\d|\de-?\d"
_COMPARISONS = re.compile(
    rf"{_TOLERANCES}|{_EQUALITIES}|assert[^\n]*[<>][^\n]*({_FRACTION})|assert[^\n]*({_FRACTION})[^\n]*[<>]"
)


@dataclass
class _File:
    """Top-level definitions of a file by name: their text, what they name, and where imported names come from."""

    texts: dict = field(default_factory=dict)
    named: dict = field(default_factory=dict)
    imported: dict = field(default_factory=dict)


@cache
def _read(path):
    source = path.read_text(encoding="utf-8")
    lines, file = source.splitlines(), _File()
    for node in ast.parse(source).body:
        defined = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("support"):
            for alias in node.names:
                file.imported[alias.asname or alias.name] = _place(node.module, alias.name)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined = [node.name]
        elif isinstance(node, ast.Assign):
            defined = [target.id for target in node.targets if isinstance(target, ast.Name)]
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        for name in defined:
            file.texts[name] = "\n".join(lines[first - 1 : node.end_lineno])
            file.named[name] = set(_names(node)) - {name}
    return file


def _names(definition):
    """Variables, parameters (fixtures) and strings (fixtures too) of a definition; attributes as ``module.name``."""
    for node in ast.walk(definition):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


@cache
def _conftests(folder):
    """The conftest.py of a folder of tests/ and of those that it lies in, whether they exist or not."""
    return [one / "conftest.py" for one in (folder, *folder.parents) if one.is_relative_to(TESTS)]


@cache
def _place(module, name):
    """The file that ``from module import name`` reads, and the name in it, or None for the file itself."""
    path = TESTS.joinpath(*module.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py"), name
    return path / f"{name}.py", None


@cache
def compares_numbers(path, name):
    """Whether a definition of a test file, or anything of tests/ that it names, compares numbers.

    Args:
        path: The file.
        name: Name of a function or class at its top level.
    """
    pending, seen = [(Path(path), name)], set()
    while pending:
        place = path, name = pending.pop()
        if place in seen or not path.is_file():
            continue
        seen.add(place)
        file = _read(path)
        if _COMPARISONS.search(file.texts.get(name, "")):
            return True
        conftests = _conftests(path.parent)
        for used in file.named.get(name, ()):
            first, _, rest = used.partition(".")
            if used in file.texts:
                pending.append((path, used))
            elif first in file.imported:
                where, whole = file.imported[first]
                pending.append((where, whole or rest))
            else:
                pending += [(conftest, used) for conftest in conftests]
    return False
