"""Fetches the tests that timm ships in its source distribution."""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.0.31"


def fetch_tests(target: Path) -> Path:
    """Downloads timm's source distribution and unpacks its tests; returns their folder."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--no-binary", "timm", f"timm=={VERSION}", "--dest", str(target)),
        ],
        check=True,
    )
    with tarfile.open(target / f"timm-{VERSION}.tar.gz") as archive:
        members = [
            m for m in archive.getmembers() if m.name.startswith(f"timm-{VERSION}/tests/") and m.isfile()
        ]
        archive.extractall(target, members=members, filter="data")
    return target / f"timm-{VERSION}" / "tests"


def run_tests(tests: Path, arguments: list[str]) -> int:
    """Runs pytest in timm's tests with our plugin, in a process a core; returns its exit status."""
    options = ["-p", "plugin", "-q", "-W", "ignore", "-o", "addopts=", "--rootdir", str(tests), "-n", "auto"]
    # the workers of xdist import the plugin too
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments], cwd=tests, env=environment, check=False
    ).returncode


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(fetch_tests(Path(folder)))
