"""Settings that must stand before anything of the package is imported, and how many tests run at a time."""

import os

import pytest
import torch

pytest_plugins = ["support.warnings_of_others"]

if not torch.cuda.is_available():
    # Triton reads it when a kernel is decorated; its interpreter runs kernels on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1 and "OMP_NUM_THREADS" not in os.environ:
    # threads of several workers on the same cores would wait for each other
    _THREADS = max(1, (os.cpu_count() or 1) // _WORKERS)
    torch.set_num_threads(_THREADS)
    os.environ["OMP_NUM_THREADS"] = str(_THREADS)

from support import numeric, seeds  # noqa: E402 - after what the environment must hold

_NOT_NUMERIC = ("slow", "distributed", "gpu")  # what takes long, or what other devices compute


def pytest_xdist_auto_num_workers():
    """Workers of ``-n auto``: one a core, and no more than memory has room for."""
    return min(os.cpu_count() or 1, 8)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Marks the numeric tests, which tests/cpus.py runs as on other CPUs."""
    for item in items:
        elsewhere = any(map(item.get_closest_marker, _NOT_NUMERIC))
        if not elsewhere and numeric.compares_numbers(
            item.path, item.location[2].split("[")[0].split(".")[0]
        ):
            item.add_marker("numeric")


@pytest.hookimpl(tryfirst=True)  # before the fixtures of a module, which draw too
def pytest_runtest_setup(item):
    """Leaves a test the seeds that it states where it asks for it."""
    seeds.set_offset(0 if item.get_closest_marker("fixed_seed") else seeds.stated_offset())


@pytest.fixture(autouse=True)
def _seeded():
    """Starts each test from one state of torch's generator."""
    torch.manual_seed(0)
