"""Kernels on arrays, shared out by rows: where they are kept, and that all rows are worked on once."""

import importlib

import numpy as np
import pytest
import torch

from timm_mvhybrid.ops.fused import native, rows

pytest.importorskip("numba")

SOURCE = """
from timm_mvhybrid.ops.fused.rows import jit
@jit
def double(x, y, start, stop):
    for i in range(start, stop):
        y[i] += 2 * x[i]
"""


@pytest.fixture
def module(kernel_module):
    """The folder of a module of one kernel, not yet compiled."""
    return kernel_module("doubling", SOURCE)


def doubled(num_rows, **options):
    kernel = rows.compiled_kernels("doubling", torch.ones(1)).double
    x, y = np.arange(num_rows, dtype=np.float32), np.zeros(num_rows, np.float32)
    parts = rows.in_parts(lambda part, _: kernel(x, y, part.start, part.stop), num_rows, **options)
    return y, parts


@pytest.mark.parametrize(("num_rows", "threads", "options", "parts"), [
    (1, 3, {}, 1),
    (7, 1, {}, 1),
    (7, 3, {}, 3),
    (10, 3, {"step": 4}, 3),
    (100, 3, {"least": 40}, 2),
])  # fmt: skip
def test_each_row_is_worked_on_once(module, monkeypatch, num_rows, threads, options, parts):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    y, number = doubled(num_rows, **options)
    assert number == parts == rows.num_parts(num_rows, options.get("least", 1))
    assert np.array_equal(y, 2 * np.arange(num_rows))


def test_kernels_are_kept_on_disk(module):
    doubled(3)
    assert native.cache_failure() is None
    assert list(module.glob("**/*.nbi"))


def test_a_folder_that_cannot_be_written_to_costs_only_time_and_is_said(module, monkeypatch):
    from numba.core import caching

    # what numba does where it finds none of its folders writable
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert np.array_equal(doubled(3)[0], [0, 2, 4])
    assert "no locator available" in native.cache_failure()


def test_a_disk_that_runs_full_costs_only_time_and_is_said(module, monkeypatch):
    from numba.core import caching

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert np.array_equal(doubled(3)[0], [0, 2, 4])
    assert np.array_equal(doubled(3)[0], [0, 2, 4])
    assert "No space left" in native.cache_failure()


def test_what_is_not_float32_on_a_cpu_finds_none(module):
    for like in (torch.ones(1, dtype=torch.float64), torch.ones(0), torch.ones(1, device="meta")):
        assert rows.compiled_kernels("doubling", like) is None
    assert rows.compiled_kernels("a_module_that_is_missing", torch.ones(1)) is None
    assert importlib.util.find_spec("doubling") is not None
