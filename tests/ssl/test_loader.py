import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.generated_patches import random_patches, write_hest

from timm_mvhybrid.data import DataError, PatchError, Samples, open_samples
from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.ssl.augmentation import DeviceAugmentation
from timm_mvhybrid.ssl.config import CropConfig
from timm_mvhybrid.ssl.loader import make_loader

CROPS = CropConfig(global_size_px=16, local_size_px=8, num_local=2)


class Patches:
    """A source in memory, some of whose patches cannot be read."""

    path = Path("memory")
    coords = barcodes = paths = resolution_um_per_px = None
    patch_size_px = 20

    def __init__(self, num_patches, broken=(), error=PatchError, seed=0):
        self.patches = random_patches(num_patches, size=20, seed=seed)
        self.broken = frozenset(broken)
        self.error = error

    def __len__(self):
        return len(self.patches)

    def __getitem__(self, index):
        if index in self.broken:
            raise self.error(f"{self.name(index)}: not a readable image")
        return self.patches[index]

    def name(self, index):
        return f"memory/{index}.png"

    def close(self):
        pass


def batches(samples, *, batch_size=4, num_steps=6, seed=0, **options):
    return list(
        make_loader(samples, crops=CROPS, batch_size=batch_size, num_steps=num_steps, seed=seed, **options)
    )


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.step == other.step
        for name in ("global_crops", "local_crops", "sample_keys", "indices"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert one.corrupt == other.corrupt


@pytest.fixture
def samples():
    return Samples([Patches(10), Patches(7, seed=1)], weights=[1, 2])


def test_a_batch_holds_the_crops_of_its_samples(samples, monkeypatch):
    (batch,) = batches(samples, num_steps=1)
    assert batch.global_crops.shape == (8, 3, 16, 16)
    assert batch.local_crops.shape == (8, 3, 8, 8)
    assert len(batch) == len(batch.sample_keys) == 4
    monkeypatch.setattr("timm_mvhybrid.ssl.crops._RATIO", (1, 1))
    whole = CropConfig(
        global_size_px=20, local_size_px=8, num_local=0, global_scale=(1, 1), horizontal_flip=0
    )
    (batch,) = make_loader(samples, crops=whole, batch_size=4, num_steps=1, seed=0)
    for i, index in enumerate(batch.indices.tolist()):
        expected = torch.from_numpy(np.array(samples[index])).permute(2, 0, 1)
        assert torch.equal(batch.global_crops[i], expected)
        assert torch.equal(batch.global_crops[4 + i], expected)


def test_an_epoch_draws_the_samples_by_their_weights(samples):
    drawn = torch.cat([batch.indices for batch in batches(samples, batch_size=8, num_steps=3)])
    assert np.bincount(drawn, minlength=17).tolist() == [1] * 10 + [2] * 7


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(tmp_path, num_workers):
    write_hest(tmp_path / "a.h5", random_patches(9, size=20))
    samples = open_samples(tmp_path)
    samples[0]  # leaves the file open, which a forked worker must not read through
    assert_same(batches(samples, num_workers=num_workers), batches(samples))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_goes_on_as_if_nothing_had_happened(samples, num_workers):
    whole = batches(samples)
    for start in (1, 5, 6):
        assert_same(batches(samples, start_step=start, num_workers=num_workers), whole[start:])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_see_together_what_one_would_see(world_size):
    samples = Samples([Patches(10, broken=[3]), Patches(7)])
    alone = batches(samples, batch_size=8, max_corrupt=1)
    size = 8 // world_size
    ranks = [
        batches(samples, batch_size=size, rank=rank, world_size=world_size, max_corrupt=1)
        for rank in range(world_size)
    ]
    for step, whole in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        for name in ("indices", "sample_keys"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        for name in ("global_crops", "local_crops"):
            # crop-major rows: crops first, then ranks, then images
            joined = torch.cat([getattr(part, name).unflatten(0, (-1, size)) for part in parts], dim=1)
            assert torch.equal(joined.flatten(0, 1), getattr(whole, name))
        assert [sample for part in parts for sample in part.corrupt] == whole.corrupt
    colours = DeviceAugmentation(mean=(0, 0, 0), std=(1, 1, 1))
    expected, part = colours(alone[0])[0], colours(ranks[1][0])[0]
    assert torch.equal(part.unflatten(0, (2, size)), expected.unflatten(0, (2, 8))[:, size : 2 * size])


def test_seeds_and_epochs_differ(samples):
    first, other = batches(samples), batches(samples, seed=1)
    assert not torch.equal(first[0].indices, other[0].indices)
    source = Samples([Patches(1)])
    crops = torch.cat([batch.global_crops for batch in batches(source, batch_size=1, num_steps=5)])
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(crops, 2))


def test_the_random_numbers_of_the_process_play_no_part(samples):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = batches(samples)
    torch.manual_seed(0)
    assert_same(batches(samples, num_workers=1), first)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    np.random.seed(1)
    assert_same(batches(samples, num_workers=1), first)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_samples_are_reported_and_replaced_always_by_the_same(num_workers):
    samples = Samples([Patches(12, broken=[3, 8])])
    loader = make_loader(
        samples, crops=CROPS, batch_size=4, num_steps=6, seed=0, max_corrupt=2, num_workers=num_workers
    )
    found = list(loader)
    reported = [sample for batch in found for sample in batch.corrupt]
    # twice, once an epoch, and possibly as a replacement; but two different ones
    assert len(reported) >= 4
    assert {sample.index for sample in reported} == {3, 8} == set(loader.corrupt)
    assert {sample.name for sample in reported} == {"memory/3.png", "memory/8.png"}
    assert "memory/3.png: not a readable image" in {sample.message for sample in reported}
    drawn = torch.cat([batch.indices for batch in found]).tolist()
    assert not {3, 8} & set(drawn)
    intact = batches(Samples([Patches(12)]))
    assert_same(batches(samples, max_corrupt=2), found)
    for batch, expected in zip(found, intact, strict=True):
        changed = batch.indices != expected.indices
        assert torch.equal(
            expected.indices[changed].unique(),
            expected.indices[(expected.indices == 3) | (expected.indices == 8)].unique(),
        )
        assert torch.equal(batch.sample_keys, expected.sample_keys)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("max_corrupt", "count"), [(0, 1), (1, 2)])
def test_one_more_than_is_tolerated_stops_the_run_and_is_named(num_workers, max_corrupt, count):
    loader = make_loader(
        Samples([Patches(12, broken=[3, 8])]),
        crops=CROPS,
        batch_size=4,
        num_steps=6,
        seed=0,
        max_corrupt=max_corrupt,
        num_workers=num_workers,
    )
    message = (
        rf"^memory/[38]\.png: not a readable image; {count} unreadable samples, and .* allows {max_corrupt}"
    )
    with pytest.raises(DataError, match=message):
        list(loader)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_where_nothing_can_be_read_the_search_ends(num_workers):
    samples = Samples([Patches(50, broken=range(50))])
    with pytest.raises(DataError, match=r"^memory/\d+\.png: .*; 10 samples drawn one after the other"):
        batches(samples, max_corrupt=1000, num_workers=num_workers)


def test_an_error_that_is_no_corrupt_patch_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        batches(Samples([Patches(5, broken=[2], error=ZeroDivisionError)]), max_corrupt=100)


def test_a_source_that_vanishes_stops_the_run(tmp_path):
    write_hest(tmp_path / "a.h5", random_patches(9, size=20))
    samples = open_samples(tmp_path)
    (tmp_path / "a.h5").unlink()
    for num_workers in (0, 1):
        with pytest.raises(DataError, match=r"^.*a\.h5: cannot be opened as an h5 file"):
            batches(samples, max_corrupt=100, num_workers=num_workers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_workers_leave_signals_to_the_run_which_saves_its_state_first(samples, number):
    others = {child.pid for child in multiprocessing.active_children()}
    loader = iter(make_loader(samples, crops=CROPS, batch_size=4, num_steps=12, seed=0, num_workers=2))
    found = [next(loader)]
    workers = [child for child in multiprocessing.active_children() if child.pid not in others]
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, number)
    found.extend(loader)
    assert_same(found, batches(samples, num_steps=12))
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_a_worker_that_only_just_started_does_not_end_it(samples, number, monkeypatch):
    started = []

    def start_and_signal(process):
        start(process)
        os.kill(process.pid, number)
        started.append(process)

    start = multiprocessing.process.BaseProcess.start
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_and_signal)
    found = batches(samples, num_steps=12, num_workers=2)
    assert len(started) == 2
    assert_same(found, batches(samples, num_steps=12))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_pillows_path_has_the_same_samples_and_keys(samples):
    fast, slow = batches(samples), batches(samples, augmentation="paper_pil")
    for one, other in zip(fast, slow, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.sample_keys, other.sample_keys)
        assert one.global_crops.shape == other.global_crops.shape
        assert not torch.equal(one.global_crops, other.global_crops)


def test_the_length_is_that_of_what_remains(samples):
    loader = make_loader(samples, crops=CROPS, batch_size=4, num_steps=6, seed=0, start_step=4)
    assert len(loader) == len(list(loader)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0; it must be at least 1"),
        ({"rank": 2, "world_size": 2}, "`rank` is 2; it must be from 0 to 1"),
        ({"start_step": 7}, "`start_step` is 7; it must be from 0 to `num_steps`, which is 6"),
        ({"num_workers": -1}, "`num_workers` is -1; it must be at least 0"),
        ({"augmentation": "pil"}, "`augmentation` is 'pil'; it must be one of paper, paper_pil"),
    ],
)
def test_impossible_options_are_refused(samples, options, message):
    with pytest.raises(PretrainError, match=message):
        batches(samples, **options)


def test_a_process_that_ends_by_an_error_does_not_wait_for_its_workers(tmp_path):
    write_hest(tmp_path / "patches.h5", random_patches(8))
    program = (
        "import sys; from pathlib import Path\n"
        "from timm_mvhybrid.data.manifest import open_samples\n"
        "from timm_mvhybrid.ssl.config import CropConfig\n"
        "from timm_mvhybrid.ssl.loader import make_loader\n"
        "crops = CropConfig(global_size_px=16, local_size_px=8, num_local=1)\n"
        "loader = make_loader(open_samples((sys.argv[1],)), crops=crops, batch_size=2, num_steps=50, seed=0, num_workers=2)\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
        "raise RuntimeError('a bug')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "patches.h5")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "RuntimeError: a bug"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_whole_patches_come_beside_their_crops(num_workers):
    source = Patches(6, broken=[2])
    samples, options = Samples([source]), {"num_workers": num_workers, "max_corrupt": 1}
    plain = batches(samples, **options)
    for batch, before in zip(batches(samples, **options, image_size_px=20), plain, strict=True):
        assert before.images is None
        torch.testing.assert_close(batch.global_crops, before.global_crops, rtol=0, atol=0)
        np.testing.assert_array_equal(
            batch.images.permute(0, 2, 3, 1).numpy(), np.stack([source[i] for i in batch.indices.tolist()])
        )
