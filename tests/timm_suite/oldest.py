"""Runs the suite on the oldest timm and torch that pyproject.toml allows, in an environment of its own."""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ["tests"]


def main() -> int:
    project = (ROOT / "pyproject.toml").read_text()
    timm = re.search(r'"timm>=([\d.]+)"', project)[1]
    torch = re.search(r'"torch>=([\d.]+)"', project)[1]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # Triton's interpreter of that time fails under later releases (tests/ops/conftest.py)
        packages = [f"timm=={timm}", f"torch=={torch}.*", "numpy<2.4"]
        subprocess.run([*install, *packages, "-e", f"{ROOT}[test]"], check=True)
        command = [python, "-m", "pytest", "-q", "-n", "auto", *TESTS, *sys.argv[1:]]
        return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
