import numpy as np
import pytest

from timm_mvhybrid.ssl.counter_random import combine, mix, uniforms


def test_numbers_stay_what_they_are_for_runs_are_resumed_by_them():
    # the second output of SplitMix64 seeded with 0 is the finaliser of twice the golden gamma
    assert mix(np.array([0x9E3779B97F4A7C15 * 2 % 2**64], dtype=np.uint64))[0] == 0x6E789E6AA1B965F4
    assert combine(1, 2, 3).tolist() == [0xA7DFA81B2E24C20E]
    assert uniforms(combine(7), 0, 2)[0].tolist() == [0.66765450547691, 0.09016495602065189]


def test_signed_and_unsigned_words_and_their_order():
    words = np.array([-5, 0, 7])
    assert combine(words).tolist() == combine(words.view(np.uint64)).tolist()
    assert len({*combine(1, 2).tolist(), *combine(2, 1).tolist(), *combine(1, 2, 0).tolist()}) == 3
    assert combine(-1, np.arange(6).reshape(2, 3)).shape == (2, 3)


def test_numbers_are_even_and_independent_of_neighbours():
    values = uniforms(combine(3, np.arange(40_000)), 1, 2)
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values[:, 0], bins=20, range=(0, 1))[0]
    # χ² with 19 degrees of freedom exceeds 43.8 once in a thousand times
    assert ((counts - 2000) ** 2 / 2000).sum() < 43.8
    other_stream = uniforms(combine(3, np.arange(40_000)), 2, 1)
    columns = np.stack([values[1:, 0], values[:-1, 0], values[1:, 1], other_stream[1:, 0]])
    correlations = np.corrcoef(columns) - np.eye(4)
    assert np.abs(correlations).max() < 0.02


@pytest.mark.parametrize("bit", [0, 31, 63])
def test_a_changed_bit_changes_half_of_the_bits(bit):
    words = mix(np.arange(2000, dtype=np.uint64))
    changed = combine(words) ^ combine(words ^ np.uint64(1 << bit))
    shares = np.unpackbits(changed.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert np.abs(shares - 0.5).max() < 0.06
