"""Ranks of counterparts, against cases that can be counted by hand."""

import numpy as np
import pytest

from timm_mvhybrid.probes.matching import counterpart_ranks
from timm_mvhybrid.runtime.errors import EvaluationError


def test_ranks_of_counterparts():
    eye = np.eye(6)
    assert counterpart_ranks(eye, 3 * eye).tolist() == [0] * 6
    # each finds the next one first; then all others are as far as the own one
    assert counterpart_ranks(eye, np.roll(eye, 1, axis=0)).tolist() == [5] * 6
    assert counterpart_ranks(np.ones((6, 2)), np.ones((6, 2))).tolist() == [5] * 6
    angles = np.radians([0, 10, 25, 45])
    keys = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    turned = np.radians([0, 10, 25, 45]) + np.radians([0, 0, -14, -36])
    queries = 2 * np.stack([np.cos(turned), np.sin(turned)], axis=1)
    assert counterpart_ranks(queries, keys).tolist() == [0, 0, 2, 3]


def test_many_rows_are_ranked_in_chunks():
    random = np.random.default_rng(0)
    queries, keys = random.normal(size=(2, 2100, 8))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, keys)]
    cosines = unit[0] @ unit[1].T
    expected = (cosines > np.diagonal(cosines)[:, None]).sum(axis=1)
    found = counterpart_ranks(queries, keys)
    # pairs nearer to equal than float32 distinguishes may count either way
    close = (np.abs(cosines - np.diagonal(cosines)[:, None]) < 3e-6).sum(axis=1) - 1
    assert (np.abs(found - expected) <= close).all()


def test_no_rows_and_rows_that_do_not_fit():
    with pytest.raises(EvaluationError, match="queries: must be"):
        counterpart_ranks(np.zeros((0, 4)), np.zeros((0, 4)))
    with pytest.raises(EvaluationError, match="keys"):
        counterpart_ranks(np.ones((3, 2)), np.ones((2, 2)))
