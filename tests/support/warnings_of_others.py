"""A pytest plugin: warnings that this project causes are errors; those of other packages are counted and reported.

A dependency that deprecates something must not turn the suite red, and what our own code does to deserve a warning
must. A warning is ours if one of these holds:

1. It points to a line of ours: a deprecated call, as most packages attribute it.
2. A line of ours issued it, wherever it points.
3. It points to a function of the package that issued it, and our code called that function: a package that forgets
   the level of the stack, or NumPy's mean of nothing.

What one package says of another, or of its own insides, is theirs: pandas of how anndata uses it, torch of the
version of Python. Rule 1 stands in pyproject.toml too, by the module's name, so that it also holds where a command
prints warnings by itself; marks such as ``filterwarnings("ignore:…")``, ``pytest.warns`` and ``recwarn`` act as ever.
Processes that a test starts keep Python's own rules.
"""

import importlib.util
import re
import sys
import sysconfig
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_OURS = (
    # where it is installed, which need not be beside these tests
    str(Path(importlib.util.find_spec("timm_mvhybrid").origin).parent),
    *(str(_ROOT / name) for name in ("src", "tests", "benchmarks", "examples")),
)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_MACHINERY = {"warnings", "_py_warnings"}
_LINE_LENGTH = 160


def is_ours(filename):
    """Tells whether a file belongs to this project."""
    return any(Path(filename).is_relative_to(folder) for folder in _OURS)


def package_of(filename):
    """Names the package that a file belongs to: the folder or module below the nearest root of packages."""
    parts = Path(filename).parts
    for root in ("site-packages", "dist-packages"):
        if root in parts[:-1]:
            return parts[len(parts) - parts[::-1].index(root)].removesuffix(".py")
    path = Path(filename)
    if path.is_relative_to(_STANDARD_LIBRARY):
        return path.relative_to(_STANDARD_LIBRARY).with_suffix("").parts[0]
    return filename


def is_caused_by_us(filename, lineno, frame):
    """Applies the three rules.

    Args:
        filename: The file that the warning points to.
        lineno: The line there.
        frame: Of the function that issued the warning, if any.
    """
    if is_ours(filename):
        return True
    if frame is None:
        return False
    issuer = frame.f_code.co_filename
    if is_ours(issuer):
        return True
    if package_of(filename) != package_of(issuer):
        return False
    while frame.f_back is not None and (frame.f_code.co_filename, frame.f_lineno) != (filename, lineno):
        frame = frame.f_back
    return frame.f_back is not None and is_ours(frame.f_back.f_code.co_filename)


def _issuing_frame():
    """Returns the frame that called the machinery of warnings, whose handlers lie above it; none if nobody did."""
    frame, passed = sys._getframe(1), False
    while frame is not None:
        within = frame.f_globals.get("__name__") in _MACHINERY
        if passed and not within:
            return frame
        passed |= within
        frame = frame.f_back
    return None


@contextmanager
def errors_of_ours():
    """Raises a warning of ours when it comes to be shown, and hands those of others on."""
    show = warnings.showwarning

    def raise_or_show(message, category, filename, lineno, file=None, line=None):
        if is_caused_by_us(filename, lineno, _issuing_frame()):
            raise message
        show(message, category, filename, lineno, file, line)

    warnings.showwarning = raise_or_show
    try:
        yield
    finally:
        warnings.showwarning = show


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    with errors_of_ours():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    with errors_of_ours():
        return (yield)


@dataclass
class _Kind:
    package: str
    category: str
    message: str
    first_test: str
    count: int = 0


class _Summary:
    """What was recorded here or, by pytest-xdist, in the workers."""

    def __init__(self):
        self.kinds = {}

    def pytest_warning_recorded(self, warning_message, nodeid):
        if is_ours(warning_message.filename):
            return  # a mark of the test let it pass
        message = " ".join(str(warning_message.message).split())
        package, category = package_of(warning_message.filename), warning_message.category.__name__
        # addresses, sizes and names of temporary folders make no other kind
        key = package, category, re.sub(r"0x[0-9a-f]+|\d+|/\S+", "#", message)
        kind = self.kinds.setdefault(
            key, _Kind(package, category, message, nodeid or "before the first test")
        )
        kind.count += 1

    def pytest_terminal_summary(self, terminalreporter):
        if not self.kinds:
            return
        terminalreporter.section("warnings of other packages (no errors)")
        for kind in sorted(self.kinds.values(), key=lambda kind: (kind.package, -kind.count)):
            message = kind.message
            if len(message) > _LINE_LENGTH:
                message = message[: _LINE_LENGTH - 1] + "…"
            terminalreporter.line(f"{kind.package}: {kind.category} × {kind.count}: {message}")
            terminalreporter.line(f"    first in {kind.first_test}")


def pytest_configure(config):
    # workers of pytest-xdist send theirs to the process that started them
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Summary())
