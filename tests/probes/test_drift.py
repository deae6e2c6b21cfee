"""Drift of features against formulas written otherwise."""

import numpy as np
import pytest

from timm_mvhybrid.probes.drift import linear_cka, mean_cosine
from timm_mvhybrid.runtime.errors import EvaluationError


def features(seed, rows=30, dim=5):
    return np.random.default_rng(seed).normal(size=(rows, dim))


def test_cka_is_the_normalised_independence_of_gram_matrices():
    x, y = features(0), features(1, dim=7) + features(0) @ features(2, rows=5, dim=7)
    centre = np.eye(30) - 1 / 30
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-12)
    assert 0 < linear_cka(x, y) < 1


def test_cka_knows_no_rotation_scale_or_shift_and_cosine_does():
    x = features(0)
    rotation, _ = np.linalg.qr(features(1, rows=5))
    assert linear_cka(3 * x @ rotation + 2, x) == pytest.approx(1, rel=1e-12)
    assert mean_cosine(3 * x, x) == pytest.approx(1, rel=1e-12)
    assert mean_cosine(x @ rotation, x) < 0.9
    assert linear_cka(np.ones((30, 2)), x) == 0
    assert mean_cosine(np.zeros((30, 5)), x) == 0


def test_rows_must_agree():
    with pytest.raises(EvaluationError, match="different numbers of rows"):
        linear_cka(features(0), features(0, rows=29))
