"""Runs the suite on each supported Python at hand, with the newest of everything there: ``make test-pythons``.

The versions are those that pyproject.toml claims, or those given. Each is looked for on PATH, among pyenv's and by uv,
the newest release of it is taken, and one that is not at hand is said so loudly and passed over. Each gets an
environment of its own, which is removed afterwards; uv, where it is at hand, installs it and shares the files.
Further arguments go to pytest.
"""

import argparse
import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipelines.run import count_tests, installers

ROOT = Path(__file__).parents[1]
REPORTED = ("torch", "numpy", "pandas", "anndata", "scanpy", "tiffslide", "timm")
ASK_VERSION = "import sys; print(*sys.version_info[:3], sys.executable, sep='\\n')"


def supported_versions():
    """The versions that pyproject.toml claims, such as 3.10, the oldest first."""
    project = (ROOT / "pyproject.toml").read_text()
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)


def candidates(version):
    """Interpreters that may be of a version, wherever such are kept."""
    yield Path(sys.executable)
    for folder in os.get_exec_path():
        yield Path(folder, f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    if shutil.which("uv"):
        command = ["uv", "python", "find", "--no-project", "--no-python-downloads", "--system", version]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            yield Path(found.stdout.strip())


def find_python(version):
    """Returns the newest release at hand of a version and its interpreter, or None."""
    found = []
    for path in dict.fromkeys(candidates(version)):
        # pyenv's stand-ins on PATH exist for versions that are not chosen, and then fail
        try:
            asked = subprocess.run(
                [path, "-c", ASK_VERSION], capture_output=True, text=True, check=True, timeout=60
            )
        except (OSError, subprocess.SubprocessError):
            continue
        *numbers, executable = asked.stdout.split("\n")[:4]
        release = tuple(map(int, numbers))
        if f"{release[0]}.{release[1]}" == version:
            found.append((release, executable))
    return max(found, default=None)


def install(interpreter, environment):
    """Makes an environment with what the suite needs and returns its Python."""
    # not the standard library's venv in this process, which would be of this Python
    subprocess.run([interpreter, "-m", "venv", environment], check=True)
    python = Path(environment, "bin", "python")
    commands = list(installers(python))
    for command in commands:
        try:
            subprocess.run([*command, "-e", f"{ROOT}[test]"], check=True)
            break
        except subprocess.CalledProcessError:
            if command is commands[-1]:
                raise
            print("uv cannot install it; trying pip", flush=True)
    return python


def tests_that_name(words):
    """Tests that name one of the words, for pytest: whole files where more than single tests name it.

    Not files that are slow as a whole: those ask what our own writing does on full disks, whatever package asks for it.
    """

    def named_in(text):
        return any(word in text for word in words)

    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text, file = path.read_text(), str(path.relative_to(ROOT))
        is_slow = "\npytestmark = pytest.mark.slow\n" in text
        if "pipelines" in path.parts or is_slow or not named_in(text):
            continue
        tests = []
        for node in ast.parse(text).body:
            if named_in("\n".join(ast.get_source_segment(text, part) for part in whole(node))):
                tests.append(f"{file}::{node.name}" if is_test(node) else file)
        yield from [file] if file in tests else tests


def whole(node):
    """The parts of a statement: a decorated function's decorators lie outside it."""
    return [*getattr(node, "decorator_list", []), node]


def is_test(node):
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")


@dataclass
class Outcome:
    """What came of one version; not at hand if it has no release."""

    version: str
    release: str = "not at hand"
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    install_s: float = 0.0
    test_s: float = 0.0
    packages: str = ""

    @property
    def is_good(self):
        return self.release == "not at hand" or (self.passed > 0 and self.failed == 0)


@dataclass
class Installed:
    """A version with what the suite needs; no ``python`` where it is not at hand or could not be installed."""

    outcome: Outcome
    folder: tempfile.TemporaryDirectory
    python: Path | None = None


def install_version(version):
    """Installs what the suite needs on one version; a failure is that version's alone."""
    installed = Installed(Outcome(version), tempfile.TemporaryDirectory())
    found = find_python(version)
    if found is not None:
        release, interpreter = found
        outcome = installed.outcome
        outcome.release = ".".join(map(str, release))
        start = time.monotonic()
        try:
            installed.python = install(interpreter, Path(installed.folder.name, "environment"))
        except subprocess.CalledProcessError as error:
            print(f"Python {version} cannot be installed: {error}")
            outcome.failed, outcome.packages = 1, "cannot be installed"
        outcome.install_s = time.monotonic() - start
    return installed


def run_suite(installed, arguments):
    """Runs the suite on one version and removes its environment."""
    outcome, python = installed.outcome, installed.python
    if outcome.release == "not at hand":
        print(f"\n!!! Python {outcome.version} is not at hand: it is NOT tested\n", flush=True)
    with installed.folder as folder:
        if python is None:
            return outcome
        print(f"\n== Python {outcome.release}", flush=True)
        site = [str(path) for path in Path(folder).glob("environment/lib/python*/site-packages")]
        versions = {
            item.metadata["Name"]: item.version for item in importlib.metadata.distributions(path=site)
        }
        outcome.packages = " ".join(f"{name} {versions[name]}" for name in REPORTED if name in versions)
        report = Path(folder, "junit.xml")
        command = [python, "-m", "pytest", "-q", "-n", "auto", f"--junitxml={report}", *arguments]
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        environment["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        start = time.monotonic()
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        outcome.test_s = time.monotonic() - start
        counts = count_tests(report)
        outcome.passed, outcome.skipped = counts["passed"], counts["skipped"]
        # pytest can end badly without a test that failed
        outcome.failed = max(counts["failed"], int(status != 0))
    return outcome


def run_suites(versions, arguments):
    """Runs the suite on one version after the other; the next one is installed meanwhile."""
    outcomes = []
    with ThreadPoolExecutor(1) as installer:
        coming = installer.submit(install_version, versions[0])
        for following in [*versions[1:], None]:
            installed = coming.result()
            if following is not None:
                coming = installer.submit(install_version, following)
            outcomes.append(run_suite(installed, arguments))
    return outcomes


def print_table(outcomes):
    print(
        f"\n{'Python':12} {'':10} {'passed':>6} {'failed':>6} {'skipped':>7} {'install':>8} {'tests':>8}  packages"
    )
    for one in outcomes:
        verdict = "NOT TESTED" if one.release == "not at hand" else "ok" if one.is_good else "FAILED"
        print(
            f"{one.release if one.packages else one.version:12} {verdict:10} {one.passed:6} {one.failed:6} "
            f"{one.skipped:7} {one.install_s:6.0f} s {one.test_s:6.0f} s  {one.packages}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pythons",
        nargs="+",
        metavar="VERSION",
        help="such as 3.10, or oldest and newest (default: all supported)",
    )
    parser.add_argument(
        "--naming", nargs="+", metavar="WORD", help="only tests that name one of these, such as pandas"
    )
    options, arguments = parser.parse_known_args()
    supported = supported_versions()
    ends = {"oldest": supported[0], "newest": supported[-1]}
    versions = dict.fromkeys(ends.get(one, one) for one in options.pythons or supported)
    if unknown := sorted(set(versions) - set(supported)):
        parser.error(f"not supported: {', '.join(unknown)}; supported are {', '.join(supported)}")
    if options.naming:
        arguments += tests_that_name(options.naming)
    outcomes = run_suites(list(versions), arguments)
    print_table(outcomes)
    return 0 if all(one.is_good for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
