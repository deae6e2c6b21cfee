"""Shares of a step's time."""

import time

import pytest
import torch

from timm_mvhybrid.training.throughput import Throughput


def test_shares_of_time_add_up(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    throughput = Throughput("cpu")
    for _ in range(2):
        with throughput.measure("data"):
            spend(1)
        with throughput.measure("compute"):
            spend(2)
        throughput.count(8)
        spend(1)
    assert throughput.summary() == pytest.approx(
        {"images_per_second": 2, "share_data": 0.25, "share_compute": 0.5, "share_other": 0.25}
    )
    spend(4)
    throughput.count(8)
    assert throughput.summary() == pytest.approx({"images_per_second": 2, "share_other": 1})


def test_a_phase_that_fails_is_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    throughput = Throughput("cpu")

    def read():
        with throughput.measure("data"):
            now[0] += 3
            raise EOFError

    with pytest.raises(EOFError):
        read()
    now[0] += 1
    assert throughput.summary()["share_data"] == pytest.approx(0.75)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compute_on_cuda_counts_kernels_and_not_calls():
    matrix = torch.randn(4096, 4096, device="cuda")
    matrix @ matrix
    torch.cuda.synchronize()
    throughput = Throughput("cuda")
    with throughput.measure("compute"):
        for _ in range(20):
            matrix @ matrix
    assert throughput.summary()["share_compute"] > 0.8
