import os
import warnings

import pytest
from support.generated_patches import random_patches, write_hest

from timm_mvhybrid.data import open_samples, open_source
from timm_mvhybrid.embed.model_input import PatchLoader, num_available_workers
from timm_mvhybrid.runtime.cores import num_loader_workers, num_usable_cores
from timm_mvhybrid.ssl.config import CropConfig
from timm_mvhybrid.ssl.loader import make_loader


def of_evaluation(path, num_workers):
    loader = PatchLoader(open_source(path), (20, 20), batch_size=1, num_workers=num_workers, pin_memory=False)
    return loader.loader


def of_pretraining(path, num_workers):
    crops = CropConfig(global_size_px=16, local_size_px=8, num_local=1)
    loader = make_loader(
        open_samples([path]), crops=crops, batch_size=1, num_steps=64, seed=0, num_workers=num_workers
    )
    return loader._loader


@pytest.mark.parametrize("loader", [of_evaluation, of_pretraining])
@pytest.mark.parametrize("num_cores", [1, 3, 40])
def test_no_loader_has_more_processes_than_cores_and_torch_has_nothing_to_say(
    tmp_path, monkeypatch, loader, num_cores
):
    write_hest(tmp_path / "a.h5", random_patches(64))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)), raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wanted in (0, 1, 2, num_cores, num_cores + 1, 1000):
            assert loader(tmp_path / "a.h5", wanted).num_workers == min(wanted, num_cores)
    assert num_available_workers() == min(num_cores, 8)


def test_no_process_is_without_a_batch(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)), raising=False)
    assert [num_loader_workers(4, num) for num in (0, 1, 3, 4, 5)] == [0, 1, 3, 4, 4]


def test_cores_are_counted_where_a_process_cannot_be_bound_to_some(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert num_usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert num_usable_cores() == 1
