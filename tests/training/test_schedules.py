"""Schedules have DINOv2's end points."""

import numpy as np
import pytest

from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.training.schedules import cosine_schedule, linear_warmup


@pytest.mark.parametrize(
    ("num_steps", "warmup"), [(20, 0), (20, 1), (20, 2), (20, 7), (7, 7), (1, 0), (1, 1)]
)
def test_cosine_is_a_line_and_half_a_cosine(num_steps, warmup):
    found = [
        cosine_schedule(
            step, start=2e-3, end=1e-6, num_steps=num_steps, warmup_steps=warmup, warmup_start=1e-5
        )
        for step in range(num_steps)
    ]
    progress = np.arange(num_steps - warmup) / max(num_steps - warmup, 1)
    cosine = 1e-6 + (2e-3 - 1e-6) * 0.5 * (1 + np.cos(np.pi * progress))
    np.testing.assert_allclose(found, [*np.linspace(1e-5, 2e-3, warmup), *cosine], rtol=1e-12)


def test_cosine_stays_at_its_end_behind_the_run():
    values = [cosine_schedule(step, start=0.04, end=0.4, num_steps=10) for step in (10, 11, 1000)]
    assert values == [0.4, 0.4, 0.4]
    assert cosine_schedule(9, start=0.04, end=0.4, num_steps=10) < 0.4


def test_frozen_steps_do_not_shift_the_schedule():
    options = {"start": 1.0, "end": 0.0, "num_steps": 10, "warmup_steps": 4}
    plain = [cosine_schedule(step, **options) for step in range(10)]
    frozen = [cosine_schedule(step, **options, frozen_steps=3) for step in range(10)]
    assert frozen == [0.0, 0.0, 0.0, *plain[3:]]


def test_warmup_is_a_line_that_stays():
    values = [linear_warmup(step, start=0.04, end=0.06, num_steps=5) for step in range(8)]
    np.testing.assert_allclose(values, [0.04, 0.045, 0.05, 0.055, 0.06, 0.06, 0.06, 0.06])
    assert linear_warmup(0, start=0.04, end=0.06, num_steps=0) == 0.06
    assert linear_warmup(0, start=0.04, end=0.06, num_steps=1) == 0.04


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_warmup(-1, start=0, end=1, num_steps=5), "`step` is -1"),
        (lambda: cosine_schedule(0, start=0, end=1, num_steps=-5), "`num_steps` is -5"),
        (lambda: cosine_schedule(0, start=0, end=1, num_steps=5, frozen_steps=-1), "`frozen_steps` is -1"),
        (lambda: cosine_schedule(0, start=0, end=1, num_steps=5, warmup_steps=6), "`warmup_steps` is 6"),
    ],
)
def test_impossible_counts_are_named(call, message):
    with pytest.raises(PretrainError, match=message):
        call()
