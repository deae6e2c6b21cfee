"""Settings that must stand before anything of the package is imported, and how many tests run at a time."""

import os

import torch

pytest_plugins = ["support.warnings_of_others"]

if not torch.cuda.is_available():
    # Triton reads it when a kernel is decorated; its interpreter runs kernels on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    # threads of several workers on the same cores would wait for each other
    _THREADS = max(1, (os.cpu_count() or 1) // _WORKERS)
    torch.set_num_threads(_THREADS)
    os.environ["OMP_NUM_THREADS"] = str(_THREADS)


def pytest_xdist_auto_num_workers():
    """Workers of ``-n auto``: one a core, and no more than memory has room for."""
    return min(os.cpu_count() or 1, 8)
