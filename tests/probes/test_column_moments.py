import math

import numpy as np
import pytest

from timm_mvhybrid.evaluate import AttentionOptions, attention_mil, prototype_retrieval, ridge_probe
from timm_mvhybrid.probes.column_moments import ColumnMoments

UNIT_ROUNDOFF = 2.0**-53


def exact_moments(block):
    """Mean and deviation of a block by sums without rounding; of the same block over and over, too."""
    mean = [math.fsum(column) / len(column) for column in block.T.tolist()]
    squares = [
        math.fsum((x - m) ** 2 for x in column) for column, m in zip(block.T.tolist(), mean, strict=True)
    ]
    return np.array(mean), np.sqrt(np.array(squares) / len(block))


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e4, 2.0**20])
def test_moments_of_millions_of_rows_are_those_of_float64(offset):
    rng = np.random.default_rng(0)
    block = (rng.normal(size=(25_000, 2)) + offset).astype(np.float32)
    # 3 million rows without their memory: the same table again and again
    repeats = 120
    found = ColumnMoments.of([block] * repeats)
    mean, std = exact_moments(block)
    num_rows, largest = repeats * len(block), np.ptp(block, axis=0).astype(np.float64)
    bound = num_rows * UNIT_ROUNDOFF * largest
    # the mean itself is rounded once more, at its own size
    assert (np.abs(found.mean - mean) <= bound + 2 * UNIT_ROUNDOFF * np.abs(mean)).all()
    # relative error of a sum of squares and half of it in its root; the mean's error enters squared
    assert (np.abs(found.std / std - 1) <= num_rows * UNIT_ROUNDOFF + (bound / std) ** 2).all()


@pytest.mark.parametrize("value", [0.1, 1 / 3, -1e30, 7.0, 0.0])
def test_a_constant_column_has_its_value_and_no_deviation_whatever_its_length(value):
    tables = [np.full((length, 1), value, np.float32) for length in (1, 999, 100_003)]
    found = ColumnMoments.of(tables)
    assert found.mean[0] == np.float32(value)
    assert found.std[0] == 0
    assert not found.standardise(tables[1]).any()


def test_blocks_and_tables_do_not_matter(monkeypatch):
    rng = np.random.default_rng(1)
    table = (rng.normal(size=(1000, 3)) * [1, 5, 0.1] + [3, -40, 0]).astype(np.float32)
    expected = ColumnMoments.of([table])
    monkeypatch.setattr("timm_mvhybrid.probes.column_moments._BLOCK", 21)
    for tables in ([table], [table[:1], table[1:400], table[400:]]):
        found = ColumnMoments.of(tables)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
        np.testing.assert_allclose(found.std, expected.std, rtol=1e-12)
    standard = found.standardise(table)
    assert standard.dtype == np.float32
    reference = (table.astype(np.float64) - table.mean(axis=0, dtype=np.float64)) / table.std(
        axis=0, dtype=np.float64
    )
    np.testing.assert_allclose(standard, reference, rtol=2**-23, atol=1e-12)


def dyadic(rng, *shape):
    """Numbers of a deviation of 1 to which a power of two up to 4,096 can be added without rounding in float32."""
    return (np.round(rng.normal(size=shape) * 1024) / 1024).astype(np.float32)


def test_attention_sees_no_difference_where_all_features_are_shifted():
    rng = np.random.default_rng(0)
    bags = [dyadic(rng, 6000, 4) for _ in range(30)]
    positive = np.arange(30) % 2 == 0
    for index in np.flatnonzero(positive):
        bags[index][:2000, 0] += 1
    options = AttentionOptions(hidden_dim=8, num_epochs=8, learning_rate=1e-2, max_patches=500)
    found, shifted = (
        attention_mil(
            [bag + shift for bag in bags[:24]], positive[:24], [bag + shift for bag in bags[24:]], options
        )
        for shift in (np.float32(0), np.float32(4096))
    )
    assert np.ptp(found) > 0.01
    # standardised in float64 and rounded to float32 once, the features are the same up to a few last digits
    np.testing.assert_allclose(shifted, found, rtol=1e-4)


def test_retrieval_sees_no_difference_where_all_features_are_shifted():
    rng = np.random.default_rng(0)
    X, labels = dyadic(rng, 120_000, 4), rng.integers(0, 3, 120_000)
    X[labels == 1, 0] += 2
    X[labels == 2, 1] += 2
    found, shifted = (
        prototype_retrieval(
            X[:119_000] + shift, labels[:119_000], X[119_000:] + shift, labels[119_000:], (10,)
        )
        for shift in (np.float32(0), np.float32(4096))
    )
    assert found.accuracy > 0.6
    # the mean is subtracted as float32: half a last digit of 4,096 is 2^-12 of a deviation
    assert abs(shifted.accuracy - found.accuracy) < 0.002
    assert np.mean(shifted.prediction == found.prediction) > 0.998


def test_a_regression_with_an_intercept_sees_no_difference_where_all_features_are_shifted():
    rng = np.random.default_rng(0)
    X = dyadic(rng, 50_000, 4)
    y = X.astype(np.float64) @ rng.normal(size=(4, 2)) + rng.normal(size=(50_000, 2))
    found, shifted = (
        ridge_probe(X + shift, y, X[:100] + shift, "intercept", None)
        for shift in (np.float32(0), np.float32(4096))
    )
    # the means are off by N u times 4,096, features of a deviation of 1 by as much, and the fit in proportion
    np.testing.assert_allclose(shifted, found, atol=10 * 50_000 * UNIT_ROUNDOFF * 4096)
