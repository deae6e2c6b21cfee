"""The share of a step's time that goes to collectives."""

import time

import pytest
import torch
import torch.distributed as dist

from timm_mvhybrid.runtime.ranks import close_process_group
from timm_mvhybrid.training.throughput import covered, watch_collectives


@pytest.mark.parametrize(
    ("spans", "length"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(4, 6), (1, 3)], 4),
        ([(1, 5), (2, 3), (4, 8)], 7),
        ([(1, 5), (1, 5)], 4),
        ([(0, 1), (1, 2)], 2),
    ],
)
def test_each_instant_counts_once(spans, length):
    assert covered(spans) == length


def test_only_collectives_count_and_only_while_they_run(capfd):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with watch_collectives(torch.device("cpu")) as nothing:
            torch.randn(300, 300) @ torch.randn(300, 300)
            assert nothing.share is None
        with watch_collectives(torch.device("cpu")) as some:
            dist.all_reduce(torch.zeros(1_000_000))
            time.sleep(0.05)
    finally:
        close_process_group()
    assert nothing.share == 0
    assert 0 < some.share < 0.9
