"""Option dataclasses → flags: how they are parsed, and how the library's messages name them.

The library names a parameter in backticks, ``give `edge='skip'` ``; whoever typed a command knows its flag, ``give
--edge skip``. The names are read off the dataclasses that the command line is made of, so nothing is declared twice.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, Suppress, arg
from tyro.constructors import PrimitiveConstructorSpec

from ..runtime.errors import TimmMVHybridError

_T = TypeVar("_T")
_ARG: Any = type(arg())
_POSITIONAL, _SUPPRESSED = (get_args(marked[int])[1] for marked in (Positional, Suppress))
_PARAMETER = re.compile(r"`([A-Za-z_][\w.]*)(?:=([^`]*))?`")


class UsageError(TimmMVHybridError):
    """Arguments that do not go together; the exit code is that of wrong usage."""


def spelled_once(name: str, by_flag: _T | None, by_position: _T | None) -> _T:
    """Takes what may be given by its flag or, as in earlier versions, by its position.

    Raises:
        UsageError: It is given not at all, or in both ways.
    """
    given = [value for value in (by_flag, by_position) if value is not None]
    if len(given) != 1:
        raise UsageError(f"{name} is {'given twice' if given else 'required'}")
    return given[0]


@dataclasses.dataclass(frozen=True)
class Flag:
    """How a parameter is given.

    Attributes:
        word: The flag, or what the help calls a positional argument.
        write: Value → the words after the flag.
        is_positional: Whether the words stand alone.
    """

    word: str
    write: Callable[[Any], list[str]]
    is_positional: bool = False

    def given(self, value: str | None) -> str:
        """Spells the parameter with a value, which is a Python literal or a placeholder; None names it alone."""
        if value is None:
            return self.word
        try:
            literal = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value if self.is_positional else f"{self.word} {value}"
        if isinstance(literal, bool):
            section, dot, name = self.word.removeprefix("--").rpartition(".")
            return self.word if literal else f"--{section}{dot}no-{name}"
        words = shlex.join(self.write(literal))
        return words if self.is_positional else f"{self.word} {words}"


Flags = Mapping[str, Flag]


def parse_options(
    options: Any,
    args: Sequence[str] | None,
    *,
    prog: str | None = None,
    description: str | None = None,
    default: Any = None,
    sections: bool = False,
) -> Any:
    """Parses arguments into a dataclass, or one of several commands; wrong usage exits with code 2.

    Args:
        options: The dataclass, or a union of them.
        args: Arguments after the program's name; None takes the process's.
        prog: Name of the program in its help.
        description: First lines of its help; None takes the dataclass's docstring.
        default: Values of what is not given; None takes the dataclass's defaults.
        sections: Whether flags of nested options begin with the name of their field, as in ``--data.sources``, and
            switches have a ``--no-`` form.
    """
    return tyro.cli(
        options,
        prog=prog,
        description=description,
        args=args,
        config=() if sections else (OmitArgPrefixes, FlagCreatePairsOff),
        **({} if default is None else {"default": default}),
    )


def flags_of(options: Any, *, sections: bool = False) -> Flags:
    """Reads the flags off option dataclasses.

    Args:
        options: A dataclass, or a union of them; those nested in it are read, too.
        sections: As for ``parse_options``.

    Returns:
        Name of a parameter → its flag. A nested field has several names, such as ``options.probe.alpha``,
        ``probe.alpha`` and ``alpha``; one that several fields have is that of the least nested, or of none.
    """
    found: dict[str, tuple[int, set[str], Flag]] = {}
    for path, flag in _walk(options, sections):
        for depth in range(len(path)):
            name = ".".join(path[depth:])
            nearest, words, _ = found.get(name, (depth + 1, set(), flag))
            if depth < nearest:
                found[name] = depth, {flag.word}, flag
            elif depth == nearest:
                words.add(flag.word)
    return {name: flag for name, (_, words, flag) in found.items() if len(words) == 1}


def in_flags(message: str, flags: Flags) -> str:
    """Translates the parameters that a message of the library names in backticks.

    Args:
        message: Any text.
        flags: The command's; names that are none of them stay as they are.
    """

    def translate(match: re.Match[str]) -> str:
        flag = flags.get(match[1])
        return match[0] if flag is None else flag.given(match[2])

    return _PARAMETER.sub(translate, message)


def _walk(options: Any, sections: bool) -> Iterator[tuple[tuple[str, ...], Flag]]:
    """Yields each field, by the names of the fields that lead to it."""
    for member in _dataclasses(options):
        hints = get_type_hints(member, include_extras=True)
        for field in dataclasses.fields(member):
            kind, marks = _unwrap(hints[field.name])
            if _SUPPRESSED in marks or not field.init:
                continue
            given: Any = next((mark for mark in marks if isinstance(mark, _ARG)), arg())
            name = (field.name if given.name is None else given.name).replace("_", "-")
            if _dataclasses(kind):
                for path, flag in _walk(kind, sections):
                    if sections and name:
                        flag = dataclasses.replace(flag, word=flag.word.replace("--", f"--{name}.", 1))
                    yield (field.name, *path), flag
                continue
            spec = next((mark for mark in marks if isinstance(mark, PrimitiveConstructorSpec)), None)
            is_positional = _POSITIONAL in marks
            word = (given.metavar or name.upper()) if is_positional else f"--{name}"
            yield (field.name,), Flag(word, _words if spec is None else spec.str_from_instance, is_positional)


def _unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Takes a type out of its annotations."""
    return (get_args(hint)[0], hint.__metadata__) if hasattr(hint, "__metadata__") else (hint, ())


def _dataclasses(options: Any) -> list[Any]:
    """Lists the dataclasses of a type: itself, or the members of a union."""
    kind, _ = _unwrap(options)
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [one for one in (_unwrap(member)[0] for member in members) if dataclasses.is_dataclass(one)]


def _words(value: Any) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list | tuple) else [value])]
