"""Models take large batches a few images at a time where nobody can tell."""

import pytest
import timm
import torch
from support.bounds import assert_near

import timm_mvhybrid
from timm_mvhybrid.models import TEST_MODEL_NAMES, chunks
from timm_mvhybrid.models.chunks import num_chunks


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three images of 17 tokens, 64 wide."""
    monkeypatch.setattr(chunks, "_NUMBERS_PER_CHUNK", 3 * 17 * 64)


def make(name):
    torch.manual_seed(0)
    return timm.create_model(name).eval(), torch.randn(10, 3, 64, 64)


def count_parts(model, monkeypatch):
    parts = []
    run = model._run_chunk
    monkeypatch.setattr(model, "_run_chunk", lambda x, *rest: parts.append(len(x)) or run(x, *rest))
    return parts


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_chunks_change_no_result(name, small_chunks, monkeypatch):
    model, x = make(name)
    whole = model(x)
    whole_tokens, whole_maps = model.forward_intermediates(x, indices=[0, 2])
    parts = count_parts(model, monkeypatch)
    with torch.inference_mode():
        assert_near(model(x), whole, roundings=2048)
        tokens, maps = model.forward_intermediates(x, indices=[0, 2])
    assert parts == [4, 3, 3] * 2
    assert_near(tokens, whole_tokens, roundings=2048)
    for part, expected in zip(maps, whole_maps, strict=True):
        assert_near(part, expected, roundings=2048)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_hooks_see_whole_batches(name, small_chunks, monkeypatch):
    model, x = make(name)
    seen = []
    with torch.no_grad():
        for module in model.blocks[-1].modules():
            handle = module.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
            model(x)
            handle.remove()
            handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
            model(x)
            handle.remove()
        handle = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, inputs: seen.append(len(inputs[0]))
        )
        model(x)
        handle.remove()
        assert set(seen) == {10}
        parts = count_parts(model, monkeypatch)
        model(x)
    assert parts == [4, 3, 3]


def test_training_and_gradients_take_the_batch_whole(small_chunks, monkeypatch):
    model, x = make("test_mvhybrid")
    parts = count_parts(model, monkeypatch)
    model(x)
    with torch.no_grad():
        model.train()(x)
    assert parts == [10, 10]


# the patch embedding looks at sizes, which a trace freezes and warns of
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_records_no_chunks(small_chunks):
    model, x = make("test_mvhybrid")
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        for batch in (x, torch.randn(7, 3, 64, 64)):
            assert_near(traced(batch), model(batch), roundings=2048)


@torch.no_grad()
def test_chunks_are_of_about_twelve_images_and_never_of_none():
    blocks = timm_mvhybrid.create_model("test_mvhybrid").eval().blocks
    sizes = (1, 12, 23, 24, 32, 64)
    assert [num_chunks(torch.empty(size, 257, 384), blocks) for size in sizes] == [1, 1, 1, 2, 2, 5]
    assert num_chunks(torch.empty(32, 257, 384, device="meta"), blocks) == 1
    assert num_chunks(torch.empty(3, 25700, 384), blocks) == 3
    assert num_chunks(torch.empty(0, 257, 384), blocks) == 1
