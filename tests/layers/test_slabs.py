"""Mixers take large batches a few images at a time where nobody can tell."""

import pytest
import torch

from timm_mvhybrid.layers import HydraMixer, MambaVisionMixer, VimMixer, slabs
from timm_mvhybrid.layers.slabs import in_slabs, num_slabs

MIXERS = [MambaVisionMixer, VimMixer, HydraMixer]


@pytest.fixture
def small_slabs(monkeypatch):
    """Slabs of three images of 10 tokens, 32 wide."""
    monkeypatch.setattr(slabs, "_NUMBERS_PER_SLAB", 3 * 10 * 32)


def make(layer):
    torch.manual_seed(0)
    options = {"headdim": 16} if layer is HydraMixer else {}
    return layer(32, **options), torch.randn(10, 10, 32)


def count_parts(mixer, monkeypatch):
    parts = []
    mix = mixer._mix
    monkeypatch.setattr(mixer, "_mix", lambda x: parts.append(len(x)) or mix(x))
    return parts


@pytest.mark.parametrize("layer", MIXERS)
def test_slabs_change_no_result_and_no_hook(layer, small_slabs, monkeypatch):
    mixer, x = make(layer)
    whole = mixer(x)
    parts, hooked = count_parts(mixer, monkeypatch), []
    mixer.register_forward_hook(lambda _, inputs, output: hooked.append((len(inputs[0]), len(output))))
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), whole)
    assert parts == [4, 3, 3]
    assert hooked == [(10, 10)]


@pytest.mark.parametrize("layer", MIXERS)
def test_with_gradients_a_batch_stays_whole(layer, small_slabs, monkeypatch):
    mixer, x = make(layer)
    parts = count_parts(mixer, monkeypatch)
    mixer(x)
    assert parts == [10]


# the scans look at lengths, which a trace freezes and warns of
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("layer", MIXERS)
def test_a_trace_records_no_slabs(layer, small_slabs):
    mixer, x = make(layer)
    with torch.no_grad():
        traced = torch.jit.trace(mixer, x)
        for batch in (x, torch.randn(7, 10, 32)):
            torch.testing.assert_close(traced(batch), mixer(batch))


@torch.no_grad()
def test_slabs_are_of_about_eight_images_and_never_of_none(monkeypatch):
    assert [num_slabs(torch.empty(batch, 257, 384)) for batch in (1, 8, 15, 16, 32, 33)] == [1, 1, 1, 2, 4, 4]
    assert num_slabs(torch.empty(32, 257, 384, device="meta")) == 1
    assert num_slabs(torch.empty(1, 25700, 384)) == 1
    assert num_slabs(torch.empty(0, 257, 384)) == 1
    seen = []
    in_slabs(lambda part: seen.append(len(part)) or part, torch.zeros(3, 1, 1), 8)
    assert seen == [1, 1, 1]
