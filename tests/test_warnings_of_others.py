"""Which warnings turn the suite red: tried on a small project with two packages that warn."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFTEST = 'pytest_plugins = ["support.warnings_of_others"]\n'
BELOW = """
import warnings
import numpy as np

def old(level=1):
    warnings.warn("old is deprecated", FutureWarning, stacklevel=level)

def deep():
    old()

def compute():
    return np.array([1.0]) / 0
"""
ABOVE = """
import below

def use():
    below.old(level=2)

def use_deeply():
    below.deep()

def compute():
    return below.compute()

def call(function):
    function()
"""
THEIRS = {
    "one package warns of how another uses it": "above.use()",
    "a package warns of its insides": "below.deep()",
    "and so does another below it": "above.use_deeply()",
    "numbers of a package that another calls": "above.compute()",
}
OURS = {
    "attributed to our line": "below.old(level=2)",
    "issued by the function that we call": "below.old()",
    "issued by us and attributed to a package": "above.call(lambda: warnings.warn('ours', stacklevel=2))",
    "issued by us and shown by our command's handler": "command(lambda: above.call(lambda: warnings.warn('ours', stacklevel=2)))",
    "numbers that we hand to a package": "below.compute()",
    "numbers of ours": "np.array([1.0]) / 0",
    "attributed to the function of a package that we call": "np.mean(np.array([]))",
    "an exception that nobody caught": "Bad()",
}
TESTS = """
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import above, below

class Bad:
    def __del__(self):
        raise ValueError("unraisable")

def command(function):
    from timm_mvhybrid.cli.messages import warnings_in_one_line
    with warnings_in_one_line():
        function()
"""


@pytest.fixture
def project(tmp_path):
    packages = tmp_path / "environment" / "site-packages"
    packages.mkdir(parents=True)
    for name, text in (("below", BELOW), ("above", ABOVE)):
        (packages / f"{name}.py").write_text(text)
    # below the folder of our tests, for that makes a test ours
    (tmp_path / "tests" / "support").mkdir(parents=True)
    plugin = (ROOT / "tests" / "support" / "warnings_of_others.py").read_text()
    (tmp_path / "tests" / "support" / "warnings_of_others.py").write_text(plugin)
    (tmp_path / "tests" / "conftest.py").write_text(CONFTEST)
    settings = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(settings)
    return tmp_path


def run(project, tests, *arguments):
    """Runs tests there and returns pytest's output."""
    (project / "tests" / "test_it.py").write_text(TESTS + tests)
    path = [str(project / "environment" / "site-packages"), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONWARN"))
    }
    result = subprocess.run(
        command,
        cwd=project,
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout + result.stderr


def as_tests(statements):
    return "".join(
        f"\ndef test_{re.sub('[^a-z]+', '_', name.lower())}():\n    {statement}\n"
        for name, statement in statements.items()
    )


def outcomes(output):
    last = output.strip().splitlines()[-1]
    return {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?)", last)}


def test_theirs_are_counted_and_ours_fail(project):
    output = run(project, as_tests(THEIRS | OURS))
    assert outcomes(output) == {"passed": len(THEIRS), "failed": len(OURS)}, output
    for name in OURS:
        assert f"FAILED tests/test_it.py::test_{re.sub('[^a-z]+', '_', name.lower())}" in output
    summary = output[output.index("warnings of other packages") :]
    assert "above: FutureWarning × 1: old is deprecated" in summary
    assert "below: FutureWarning × 2: old is deprecated" in summary
    assert "first in tests/test_it.py::test_a_package_warns_of_its_insides" in summary
    assert "below: RuntimeWarning × 1: divide by zero" in summary
    assert "ours" not in summary[: summary.index("short test summary")]


def test_workers_report_to_the_process_that_started_them(project):
    output = run(project, as_tests(THEIRS) + "\ndef test_ours():\n    below.old()\n", "-n", "1")
    assert outcomes(output) == {"passed": len(THEIRS), "failed": 1}, output
    assert "below: FutureWarning × 2: old is deprecated" in output


def test_tests_that_look_for_warnings_find_theirs_and_ours(project):
    output = run(
        project,
        """
def test_those_awaited():
    with pytest.warns(FutureWarning, match="old"):
        below.old(level=2)
    with pytest.warns(FutureWarning, match="old"):
        above.use()

def test_those_recorded(recwarn):
    below.old(level=2)
    above.use()
    assert len(recwarn) == 2

def test_those_not_awaited_of_others():
    with pytest.warns(UserWarning):
        warnings.warn("ours")
        above.use()

def test_strictness_that_a_test_asks_for():
    with warnings.catch_warnings(), pytest.raises(FutureWarning):
        warnings.simplefilter("error")
        above.use()

@pytest.mark.filterwarnings("ignore:old is")
def test_those_let_pass():
    below.old(level=2)

@pytest.mark.filterwarnings("error:old is")
def test_those_forbidden():
    with pytest.raises(FutureWarning):
        above.use()
""",
    )
    assert outcomes(output) == {"passed": 6}, output


def test_those_not_awaited_of_ours_fail(project):
    output = run(
        project,
        """
def test_it():
    with pytest.warns(UserWarning, match="awaited"):
        warnings.warn("awaited")
        below.old(level=2)
""",
    )
    assert outcomes(output) == {"failed": 1}, output


def test_collection(project):
    output = run(project, "\nabove.use()\nbelow.deep()\n\ndef test_it():\n    pass\n")
    assert outcomes(output) == {"passed": 1}, output
    assert "above: FutureWarning × 1" in output
    output = run(project, "\nbelow.old(level=2)\n\ndef test_it():\n    pass\n")
    assert outcomes(output) == {"error": 1}, output


def test_strictness_from_the_command_line(project):
    output = run(project, as_tests(THEIRS), "-W", "error")
    assert outcomes(output) == {"failed": len(THEIRS)}, output
