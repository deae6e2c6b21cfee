"""Existing pipelines, each from nothing to embeddings, in environments of their own: ``make pipelines``.

Makes a virtual environment for each pipeline, installs this package and ``requirements/NAME.txt`` there, and runs
``test_NAME.py`` in it. A line ``# oldest timm: VERSION`` of the requirements names the oldest timm that the pipeline
takes where that is not the oldest of this package; a line ``# without dependencies: REQUIREMENT`` a pipeline that pins
what this package cannot use, whose other dependencies the file lists; a line ``# clone: NAME ADDRESS COMMIT`` a pipeline
that PyPI has not, of which the user names the folder of a clone (``--clone NAME=FOLDER``; nothing is written there): it is
left out without one, and with ``# optional clone:`` its other tests run.
"""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REQUIREMENTS = HERE / "requirements"
NAMES = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
REPORTED = ("timm", "torch", "numpy", "huggingface_hub")
INSTALL_TIMEOUT_S = 1800
TEST_TIMEOUT_S = 1800


def oldest_timm(requirements):
    """The oldest timm to try: the pipeline's own, or this package's."""
    named = re.search(r"^# oldest timm: ([\d.]+)", requirements, re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text()
    return named[1] if named else re.search(r'"timm>=([\d.]+)"', project)[1]


def needed_clone(name):
    """What clone a pipeline needs: its name, where it comes from, the commit tried and whether it can go without."""
    requirements = (REQUIREMENTS / f"{name}.txt").read_text()
    found = re.search(r"^# (optional )?clone: (\S+) (\S+) (\S+)", requirements, re.MULTILINE)
    return found and dict(name=found[2], address=found[3], tried=found[4], is_optional=found[1] is not None)


def commit_of(clone):
    """The commit that a clone stands at, with a plus where its files are changed; empty for a folder without git."""
    command = ["git", "-C", clone, "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        # a folder within another repository, such as this one, has that one's commit
        top = subprocess.run(
            ["git", "-C", clone, "rev-parse", "--show-toplevel"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip() if Path(top.stdout.strip()) == clone.resolve() else ""


def bare_requirements(requirements):
    """What is installed without its dependencies."""
    return re.findall(r"^# without dependencies: (\S+)", requirements, re.MULTILINE)


CLONES = [clone["name"] for clone in map(needed_clone, NAMES) if clone]


def installers(python):
    """Commands that install into an environment, the fastest first."""
    uv = shutil.which("uv")
    if uv:
        yield [uv, "pip", "install", "--quiet", "--python", python]
    yield [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def install(name, environment, with_oldest_timm):
    """Makes the environment unless it is there, brings it up to date, and returns its Python."""
    python = environment / "bin" / "python"
    requirements = REQUIREMENTS / f"{name}.txt"
    wanted = ["pytest", "-e", str(ROOT), "-r", str(requirements)]
    if with_oldest_timm:
        wanted.append(f"timm=={oldest_timm(requirements.read_text())}")
    bare = bare_requirements(requirements.read_text())
    if not python.exists():
        venv.create(environment, with_pip=True)
    commands = list(installers(python))
    for command in commands:
        try:
            subprocess.run([*command, *wanted], check=True, timeout=INSTALL_TIMEOUT_S)
            if bare:
                subprocess.run([*command, "--no-deps", *bare], check=True, timeout=INSTALL_TIMEOUT_S)
            break
        except subprocess.CalledProcessError:
            # uv reads no configuration of pip's, so where packages come from elsewhere only pip finds them
            if command is commands[-1]:
                raise
            print(f"{name}: uv cannot install it; trying pip", flush=True)
    return python


def installed_versions(name, environment):
    """Versions of what the requirements name, and of what features depend on."""
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    bare = [re.match(r"[\w.-]+", requirement)[0] for requirement in bare_requirements(text)]
    named = [*bare, *re.findall(r"^([A-Za-z][\w.-]*)", text, re.MULTILINE)]
    path = [str(folder) for folder in environment.glob("lib/python*/site-packages")]
    found = {item.metadata["Name"]: item.version for item in importlib.metadata.distributions(path=path)}
    same_spelling = {re.sub(r"[-_.]+", "-", key).lower(): version for key, version in found.items()}
    wanted = dict.fromkeys([*named, *REPORTED])
    return {key: same_spelling.get(re.sub(r"[-_.]+", "-", key).lower(), "") for key in wanted}


def run_tests(name, python, folder, options, clone):
    """Runs a pipeline's tests and returns how many passed, failed and were skipped, and what they measured."""
    folder.mkdir(parents=True, exist_ok=True)
    report, measured = folder / "junit.xml", folder / "measured.json"
    for path in (report, measured):
        path.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-c", HERE / "pytest.ini", HERE / f"test_{name}.py"]
    command += [f"--junitxml={report}", f"--measured={measured}", f"--basetemp={folder / 'temporary'}"]
    if options.folder:
        command.append(f"--folder={options.folder.absolute()}")
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    if clone:
        command.append(f"--clone={clone}")
        # packages lie in the folder or in its src; nothing is written there, compiled files neither
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(clone), str(clone / "src")]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
    # what several write at once would be a muddle: then each is shown when it has ended
    output = folder / "output.txt"
    with output.open("w") if options.jobs > 1 else nullcontext() as written:
        try:
            subprocess.run(
                command,
                cwd=folder,
                env=environment,
                check=False,
                timeout=TEST_TIMEOUT_S,
                stdout=written,
                stderr=subprocess.STDOUT if written else None,
            )
        except subprocess.TimeoutExpired:
            print(f"{name}: the tests took longer than {TEST_TIMEOUT_S} s")
    if options.jobs > 1:
        print(f"\n== {name}\n{output.read_text()}", flush=True)
    return count_tests(report), json.loads(measured.read_text()) if measured.exists() else {}


def count_tests(report):
    """How many tests passed, failed and were skipped, by pytest's JUnit file; none if it wrote none."""
    counts = dict(passed=0, failed=0, skipped=0)
    if report.exists():
        suite = ElementTree.parse(report).getroot().find("testsuite")
        counts["failed"] = int(suite.get("failures")) + int(suite.get("errors"))
        counts["skipped"] = int(suite.get("skipped"))
        counts["passed"] = int(suite.get("tests")) - counts["failed"] - counts["skipped"]
    return counts


def try_pipeline(name, build, options):
    """Installs and tests one pipeline; an installation that fails is a failure of that pipeline alone."""
    environment = build / (f"{name}-oldest" if options.oldest_timm else name)
    result = {"pipeline": name, "oldest_timm": options.oldest_timm}
    if options.fresh:
        shutil.rmtree(environment, ignore_errors=True)
    start = time.monotonic()
    try:
        python = install(name, environment, options.oldest_timm)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{name}: cannot be installed: {error}")
        return {**result, "passed": 0, "failed": 1, "skipped": 0, "error": "cannot be installed"}
    result["versions"] = installed_versions(name, environment)
    needed = needed_clone(name)
    clone = options.clone.get(needed["name"]) if needed else None
    if clone:
        result["versions"][needed["name"]] = commit_of(clone) or "unknown commit"
    result["install_s"] = round(time.monotonic() - start, 1)
    start = time.monotonic()
    counts, measured = run_tests(name, python, build / "results" / environment.name, options, clone)
    return {**result, **counts, "test_s": round(time.monotonic() - start, 1), "measured": measured}


def is_good(result):
    return result["passed"] > 0 and result["failed"] == 0


def save(results, path):
    """Adds results to those of earlier runs, in place of the same pipelines' own."""
    kept = json.loads(path.read_text()) if path.exists() else []
    replaced = {(result["pipeline"], result["oldest_timm"]) for result in results}
    kept = [old for old in kept if (old["pipeline"], old["oldest_timm"]) not in replaced]
    path.write_text(
        json.dumps(sorted([*kept, *results], key=lambda one: (one["pipeline"], one["oldest_timm"])), indent=2)
    )


def print_table(results):
    print(
        f"\n{'pipeline':16} {'':6} {'passed':>6} {'failed':>6} {'skipped':>7} {'install':>8} {'tests':>8}  versions"
    )
    for result in results:
        versions = " ".join(f"{key} {value}" for key, value in result.get("versions", {}).items() if value)
        print(
            f"{result['pipeline']:16} {'ok' if is_good(result) else 'FAILED':6} {result['passed']:6} "
            f"{result['failed']:6} {result['skipped']:7} {result.get('install_s', 0):6.0f} s "
            f"{result.get('test_s', 0):6.0f} s  {versions}{result.get('error', '')}"
        )


def named_folder(text):
    """Reads ``NAME=FOLDER``."""
    name, _, folder = text.partition("=")
    if name not in CLONES:
        raise argparse.ArgumentTypeError(f"no pipeline needs a clone '{name}'; NAME is {', '.join(CLONES)}")
    if not Path(folder).expanduser().is_dir():
        raise argparse.ArgumentTypeError(f"{name}: no such folder: {folder!r}")
    return name, Path(folder).expanduser().absolute()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument(
        "--oldest-timm", action="store_true", help="with the oldest timm that package and pipeline take"
    )
    parser.add_argument("--folder", type=Path, help="images to embed in place of tiles of the slide shipped")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="pipelines at a time; 1 where times matter (default: 1)",
    )
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build" / "pipelines", help="folder of environments and results"
    )
    parser.add_argument(
        "--clone",
        type=named_folder,
        action="append",
        metavar="NAME=FOLDER",
        help=f"a clone that a pipeline needs; NAME is {', '.join(CLONES)}",
    )
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; at least one pipeline must run")
    options.clone = dict(options.clone or [])
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no such pipeline: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    names = []
    for name in options.names or NAMES:
        needed = needed_clone(name)
        if not needed or needed["is_optional"] or needed["name"] in options.clone:
            names.append(name)
        elif options.names:
            parser.error(
                f"{name} needs a clone of {needed['address']} (tried: {needed['tried']}): "
                f"{needed['name']}=FOLDER, or --clone {needed['name']}=FOLDER"
            )
        else:
            print(f"{name}: left out, for it needs a clone of {needed['address']}: {needed['name']}=FOLDER")
    build = options.build.absolute()
    build.mkdir(parents=True, exist_ok=True)
    results = []

    def try_one(name):
        if options.jobs == 1:
            print(f"\n== {name}", flush=True)
        return try_pipeline(name, build, options)

    with ThreadPoolExecutor(options.jobs) as pool:
        for result in pool.map(try_one, names):
            results.append(result)
            save(results, build / "results.json")
    print_table(results)
    return 0 if all(is_good(result) for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
