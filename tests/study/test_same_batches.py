"""Whether cells saw the same: what decides the number of a step, and what notices another one."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from support.pretraining import change, lines, small, write_patches

from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.ssl.crops import CropBatch
from timm_mvhybrid.study.same_batches import (
    METRIC,
    WatchedObjective,
    batch_digest,
    data_group,
    first_difference,
    seen_by_run,
)
from timm_mvhybrid.training.loop import run_training

pytest.importorskip("lightly")


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches") / "patches.h5")


def train(config, expected=None, other="another"):
    build = partial(WatchedObjective, config, expected=expected or {}, other=other)
    run_training(config, build, show_progress=False)
    return seen_by_run(config.output)


@pytest.fixture(scope="module")
def seen(patches, tmp_path_factory):
    """What a run of two steps saw."""
    return train(small(tmp_path_factory.mktemp("run") / "run", patches, num_steps=2))


def test_another_model_sees_the_same_and_another_seed_does_not(patches, seen, tmp_path):
    assert sorted(seen) == [1, 2]
    assert len(set(seen.values())) == 2
    config = small(tmp_path / "vit", patches, num_steps=2, model__name="test_vit12")
    assert train(config) == seen
    # draws of other sizes, of a model that is made with other numbers of random values
    config = small(tmp_path / "deep", patches, num_steps=2, model__arguments={"depth": 1, "init": "mamba"})
    assert train(config) == seen
    other = train(small(tmp_path / "seed", patches, num_steps=2, seed=1))
    assert other.keys() == seen.keys()
    assert not set(other.values()) & set(seen.values())


def test_accumulation_changes_nothing(patches, seen, tmp_path):
    config = small(tmp_path / "run", patches, num_steps=2, parallel__accumulate=2)
    assert train(config) == seen


def test_a_run_that_sees_something_else_stops_at_the_first_step_that_tells(patches, seen, tmp_path):
    config = small(tmp_path / "run", patches, num_steps=2, crops__vertical_flip=1.0)
    with pytest.raises(PretrainError, match="at step 1 this cell sees other images or crops than cell first"):
        train(config, expected=seen, other="first")
    assert any(line.get("event") == "other_batches" for line in lines(config.output))


def batch(num_images=3, num_local=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def pixels(number, side):
        return torch.randint(0, 256, (number, 3, side, side), generator=generator, dtype=torch.uint8)

    return CropBatch(
        step=0,
        global_crops=pixels(2 * num_images, 8),
        local_crops=pixels(num_local * num_images, 4),
        sample_keys=torch.arange(num_images) + 100,
        indices=torch.arange(num_images) * 7,
    )


def rows(whole, which):
    """Some images of a batch."""
    size = len(whole)

    def chosen(crops):
        return crops.unflatten(0, (-1, size))[:, which].flatten(0, 1)

    return replace(
        whole,
        global_crops=chosen(whole.global_crops),
        local_crops=chosen(whole.local_crops),
        sample_keys=whole.sample_keys[which],
        indices=whole.indices[which],
    )


@pytest.mark.parametrize("num_local", [0, 2])
def test_parts_of_a_batch_add_up_in_any_order(num_local):
    whole = batch(num_local=num_local)
    total = batch_digest(whole)
    assert (batch_digest(rows(whole, [2])) + batch_digest(rows(whole, [1, 0]))) % 2**40 == total
    assert batch_digest(rows(whole, [1, 2, 0])) == total
    assert 0 <= total < 2**40


@pytest.mark.parametrize("name", ["global_crops", "local_crops", "sample_keys", "indices"])
def test_every_part_of_an_image_counts(name):
    whole = batch()
    changed = getattr(whole, name).clone()
    changed.flatten()[-1] ^= 1
    assert batch_digest(replace(whole, **{name: changed})) != batch_digest(whole)


def test_groups_are_of_the_data_and_not_of_the_model(patches, tmp_path):
    config = small(tmp_path, patches)
    group = data_group(config, "data")
    assert data_group(change(config, model__name="test_vit12", num_steps=9), "data") == group
    for other in ({"seed": 1}, {"batch_size": 8}, {"crops__num_local": 1}):
        assert data_group(change(config, **other), "data") != group
    assert data_group(config, "others") != group


def test_the_first_difference_is_at_a_step_that_both_logged():
    assert first_difference({1: 5, 2: 6, 4: 7}, {2: 6, 3: 1, 4: 8}) == 4
    assert first_difference({1: 5}, {2: 6}) is None


def test_the_log_holds_whole_numbers(patches, tmp_path):
    config = small(tmp_path / "run", patches, num_steps=1, optimizer__warmup_steps=0)
    train(config)
    (line,) = [line for line in lines(config.output) if METRIC in line]
    assert isinstance(line[METRIC], int)
