"""What the ST token reads of a scan, against the scan's own loop with a token of step size 0."""

import pytest
import torch
from support.bounds import assert_accurate

from timm_mvhybrid.finetune.state_reading import _SumOfDecays, read_selective_scan, read_ssd_scan
from timm_mvhybrid.layers.scan_tokens import ScanTokens
from timm_mvhybrid.ops import selective_scan_reference, ssd_scan_reference


def draw(length, dtype=torch.float64, channels=6, states=3):
    g = torch.Generator().manual_seed(length)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    return dict(
        x=randn(2, length, channels),
        dt=randn(2, length, channels),
        B=randn(2, length, 1, states),
        C=randn(2, 1, 1, states),
        A=(-torch.rand(channels, states, generator=g, dtype=torch.float64)).to(dtype).requires_grad_(),
        dt_bias=randn(channels),
    )


def by_insertion(x, dt, B, C, A, dt_bias, reverse=False):
    """The scan of all tokens and one more, whose softplus is 0."""

    def with_last(tokens, last):
        parts = [last, tokens] if reverse else [tokens, last]
        return torch.cat(parts, dim=1)

    nothing = torch.zeros_like(x[:, :1])
    y = selective_scan_reference(
        with_last(x, nothing).mT,
        with_last(dt, nothing - 1e4).mT,
        A,
        with_last(B, torch.zeros_like(B[:, :1])).permute(0, 2, 3, 1),
        with_last(torch.zeros_like(B), C).permute(0, 2, 3, 1),
        delta_bias=dt_bias,
        delta_softplus=True,
        reverse=reverse,
    )
    return y[:, :, 0 if reverse else -1].unsqueeze(1)


def read(x, dt, B, C, A, dt_bias, reverse=False):
    return read_selective_scan(ScanTokens(x, dt, B, B), C, A, dt_bias, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 17, 63])
def test_selective_scan_in_float64(length, reverse):
    inputs = draw(length)
    found, expected = read(**inputs, reverse=reverse), by_insertion(**inputs, reverse=reverse)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    for got, wanted in zip(
        torch.autograd.grad((found * weights).sum(), inputs.values()),
        torch.autograd.grad((expected * weights).sum(), inputs.values()),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_fused_scan_reads_the_same(reverse, monkeypatch):
    inputs = draw(33)
    expected = read(**inputs, reverse=reverse)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(_SumOfDecays, "apply", None)
    torch.testing.assert_close(read(**inputs, reverse=reverse), expected, rtol=0, atol=1e-12)


def test_parts_of_a_batch(monkeypatch):
    inputs = draw(40)
    expected = read(**inputs)
    grads = torch.autograd.grad(expected.sum(), inputs.values())
    # rows and tokens in several parts
    monkeypatch.setattr("timm_mvhybrid.finetune.state_reading._WORK_ELEMENTS", 18 * 7)
    found = read(**inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    for got, wanted in zip(torch.autograd.grad(found.sum(), inputs.values()), grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_selective_scan_in_float32(threads, monkeypatch):
    """By tensor operations, and by compiled kernels where Numba is there."""
    if threads:
        pytest.importorskip("numba")
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    else:
        monkeypatch.setattr("timm_mvhybrid.finetune.state_reading.compiled_kernels", lambda *_: None)
    inputs = draw(197, torch.float32)

    def values(inputs):
        y = read(**inputs)
        grads = torch.autograd.grad(y.square().sum(), inputs.values())
        return {"y": y, **dict(zip(inputs, grads, strict=True))}

    assert_accurate(values(inputs), values, inputs, roundings=197 * 3)


@pytest.mark.parametrize("direction", [0, 1])
def test_hydras_scans(direction):
    g = torch.Generator().manual_seed(3)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x, dt, B, C = randn(2, 9, 4, 5), randn(2, 9, 2, 4), randn(2, 9, 2, 2, 3), randn(2, 1, 2, 2, 3)
    A, dt_bias, reverse = -torch.rand(4, dtype=torch.float64), randn(4), direction == 1
    found = read_ssd_scan(ScanTokens(x, dt, B, B), C, A, dt_bias, direction, reverse=reverse)

    def with_last(tokens, last):
        return torch.cat([last, tokens] if reverse else [tokens, last], dim=1)

    expected = ssd_scan_reference(
        with_last(x, torch.zeros_like(x[:, :1])),
        with_last(dt[:, :, direction], torch.full_like(dt[:, :1, 0], -1e4)),
        A,
        with_last(B[:, :, direction], torch.zeros_like(B[:, :1, 0])),
        with_last(torch.zeros_like(B[:, :, 0]), C[:, :, direction]),
        None,
        dt_bias,
        dt_softplus=True,
        reverse=reverse,
    )
    torch.testing.assert_close(found[:, 0], expected[:, 0 if reverse else -1], rtol=0, atol=1e-12)
