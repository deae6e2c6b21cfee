"""Processes: who is who, what they say to each other, and one that is lost."""

import os
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from support.forked import spawn

from timm_mvhybrid.runtime.errors import DataError, TimmMVHybridError
from timm_mvhybrid.runtime.ranks import LostProcessError, Ranks


def test_one_process_needs_no_group():
    with Ranks().joined() as ranks:
        assert not dist.is_initialized()
        assert ranks.is_first
        assert ranks.gather("a") == ["a"]
        assert ranks.any(True)
        assert ranks.mean({"a": 2.0}) == {"a": 2.0}
        assert ranks.from_first(3) == 3
        assert ranks.on_first(lambda: 4) == 4


def test_a_group_that_is_open_already_stays_open():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with Ranks(world_size=2).joined():
            pass
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_work_is_dealt_out_whole_and_evenly():
    sizes = [5, 0, 9, 1, 0, 7, 3]
    shares = [Ranks(rank=rank, world_size=3).share(sizes) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(len(sizes)))
    assert max(sum(sizes[item] for item in share) for share in shares) == 9
    assert Ranks(world_size=1).share(sizes) == list(range(len(sizes)))


@pytest.mark.distributed
def test_two_processes_hear_each_other_fail_together_and_notice_a_loss(tmp_path, monkeypatch):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    # as torchrun's own store, which outlives any process
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    spawn(_work, args=(str(tmp_path),), nprocs=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    assert "another process of this run ended" in (tmp_path / "0").read_text()


def _work(rank, folder):
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    try:
        with Ranks.from_environment().joined() as ranks:
            assert (ranks.rank, ranks.world_size, ranks.is_first) == (rank, 2, rank == 0)
            assert ranks.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
            assert ranks.any(rank == 1)
            assert not ranks.any(False)
            assert ranks.mean({"a": float(rank), "b": 1.0}) == {"a": 0.5, "b": 1.0}
            assert ranks.from_first("first" if rank == 0 else None) == "first"
            assert ranks.on_first(lambda: rank) == 0
            with pytest.raises(TimmMVHybridError, match=r"^a\.h5: broken$") as failure:
                ranks.on_first(_fail)
            assert isinstance(failure.value, DataError) == (rank == 0)
            Path(folder, str(rank)).write_text("done")
            if rank == 1:
                sys.stdout.flush()
                os._exit(0)
            ranks.gather(None)
    except LostProcessError as error:
        Path(folder, str(rank)).write_text(str(error))


def _fail():
    raise DataError("a.h5: broken")
