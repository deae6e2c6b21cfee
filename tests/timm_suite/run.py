"""Runs timm's own test_models.py and test_model_input.py on our models. Further arguments go to pytest.

With TIMM_SUITE=short in the environment the tiny backbones stand for the small ones.
"""

import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path

from source import VERSION, fetch_tests, run_tests


def main() -> int:
    installed = importlib.metadata.version("timm")
    if installed != VERSION:
        print(
            f"timm {installed} is installed; the suite belongs to timm {VERSION}, the last that it was read for"
        )
    os.environ.pop("GITHUB_ACTIONS", None)
    with tempfile.TemporaryDirectory() as folder:
        tests = fetch_tests(Path(folder))
        return run_tests(tests, ["test_models.py", "test_model_input.py", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
