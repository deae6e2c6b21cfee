"""What no operator may read: memory that nobody has written; threads; kernels that were never compiled; and what old interpreters
of Triton cannot run.
"""

import sys

import pytest
import torch

from timm_mvhybrid.ops.fused import native, rows


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan(monkeypatch):
    """Fills what torch.empty and resize_ make with NaN, or with the largest integer."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def threads():
    """Sets the number of torch's threads, for the test alone."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def kernel_module(tmp_path, monkeypatch):
    """Makes a module from its source, whose kernels were never compiled; its folder is returned."""
    names = []

    def make(name, source):
        names.append(name)
        (tmp_path / f"{name}.py").write_text(source)
        return tmp_path

    def forget():
        native.compiled.cache_clear()
        rows._module.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    # a folder that the user names would be taken first
    monkeypatch.setattr("numba.core.config.CACHE_DIR", "")
    monkeypatch.setattr(native, "_uncached", [])
    forget()
    yield make
    for name in names:
        sys.modules.pop(name, None)
    forget()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skips a kernel that Triton's interpreter cannot loop through.

    Before Triton 3.7 it turns a loop's bounds, arrays of one number, into integers in a way that NumPy 2.4 refuses.
    ``make timm-oldest`` takes a NumPy from before, so that the kernels are run there, too.
    """
    try:
        return (yield)
    except Exception as error:
        if type(error).__name__ == "InterpreterError" and "only 0-dimensional arrays can be" in str(error):
            import numpy
            import triton

            if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
                pytest.skip(
                    f"the interpreter of Triton {triton.__version__} fails under NumPy {numpy.__version__}"
                )
        raise
