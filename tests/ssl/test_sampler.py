import collections

import numpy as np
import pytest

from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.ssl.counter_random import combine
from timm_mvhybrid.ssl.sampler import SampleOrder, permute, rank_positions


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 1000, 4099])
def test_a_permutation_hits_every_number_once(size):
    for key in range(5):
        assert sorted(permute(np.arange(size), size, combine(key))) == list(range(size))


def test_every_order_is_equally_likely():
    counts = collections.Counter(
        tuple(permute(np.arange(4), 4, combine(7, key)).tolist()) for key in range(2400)
    )
    assert len(counts) == 24
    # χ² with 23 degrees of freedom exceeds 49.7 once in a thousand times
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 49.7


def test_large_permutations_keep_no_order():
    size = 1 << 40
    values = permute(np.arange(4000), size, combine(1)) / size
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.06
    assert abs(values.mean() - 0.5) < 0.02
    # a random permutation leaves one number in its place on average, whatever the size
    fixed = sum(
        int((permute(np.arange(300), 300, combine(2, key)) == np.arange(300)).sum()) for key in range(60)
    )
    assert 30 < fixed < 95


def test_each_epoch_holds_every_sample_once_in_an_order_of_its_own():
    order = SampleOrder([5, 8], seed=3)
    assert order.epoch_length == 13
    epochs = order.samples(np.arange(4 * 13)).reshape(4, 13)
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert SampleOrder([5, 8], seed=4).samples(np.arange(13)).tolist() != epochs[0].tolist()


def test_the_order_stays_what_it_is_for_runs_are_resumed_by_it():
    assert SampleOrder([5, 8], [1, 0.5], seed=0).samples(np.arange(9)).tolist() == [4, 2, 0, 3, 5, 1, 9, 7, 8]
    assert SampleOrder([5, 8], seed=0).keys([3]).tolist() == [7705280822405025113]


def test_positions_are_looked_up_one_by_one_or_together():
    order = SampleOrder([50, 7], [1, 2.5], seed=1)
    together = order.samples(np.arange(200))
    assert together[[0, 199, 64]].tolist() == [int(order.samples(position)[0]) for position in (0, 199, 64)]


def test_weights_say_how_often_a_sample_comes():
    order = SampleOrder([10, 10, 10], [1, 2, 0.3], seed=0)
    assert order.epoch_length == 10 + 20 + 3
    epochs = order.samples(np.arange(33 * 10)).reshape(10, 33)
    for epoch in epochs:
        counts = np.bincount(epoch, minlength=30)
        assert counts[:10].tolist() == [1] * 10
        assert counts[10:20].tolist() == [2] * 10
        assert counts[20:].sum() == 3
    # three a time, no sample again before all have come: after ten epochs each has come three times
    assert np.bincount(epochs.ravel(), minlength=30)[20:].tolist() == [3] * 10
    thirds = [set(epoch[epoch >= 20].tolist()) for epoch in epochs[:3]]
    assert len(set.union(*thirds)) == 9


def test_a_source_of_tiny_weight_still_comes_once_an_epoch():
    order = SampleOrder([1000, 3], [1, 0.01], seed=0)
    assert order.epoch_length == 1001
    assert (order.samples(np.arange(1001)) >= 1000).sum() == 1


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_positions_of_a_step(world_size):
    batch_size = 8 // world_size
    steps = [
        np.concatenate(
            [
                rank_positions(step, batch_size=batch_size, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
        )
        for step in range(3)
    ]
    assert np.concatenate(steps).tolist() == list(range(24))


def test_positions_and_not_samples_have_keys():
    order = SampleOrder([4], [2], seed=0)
    keys = order.keys(np.arange(800))
    assert keys.dtype == np.int64
    assert len(set(keys.tolist())) == 800
    assert not set(keys.tolist()) & set(SampleOrder([4], seed=1).keys(np.arange(800)).tolist())


def test_replacements_follow_the_weights_and_differ_by_attempt():
    order = SampleOrder([100, 100], [1, 3], seed=0)
    drawn = np.array([order.candidate(position, 1) for position in range(2000)])
    assert 0.72 < (drawn >= 100).mean() < 0.78
    assert len(set(drawn.tolist())) > 190
    again = np.array([order.candidate(position, 2) for position in range(200)])
    assert (again != drawn[:200]).mean() > 0.9
    assert drawn[7] == order.candidate(7, 1)


def test_empty_sources_are_refused():
    for sizes in ([], [3, 0]):
        with pytest.raises(PretrainError, match="at least one sample"):
            SampleOrder(sizes, seed=0)
