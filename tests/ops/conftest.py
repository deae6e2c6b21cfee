"""What no operator may read: memory that nobody has written."""

import pytest
import torch


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
