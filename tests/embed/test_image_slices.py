"""Slices of a batch: the same rows whatever the number of threads, and nothing of torch is left changed."""

import threading
import time
from functools import partial

import numpy as np
import pytest
import torch

from timm_mvhybrid.embed.backbone import load_backbone
from timm_mvhybrid.embed.half_types import DTypeChoice
from timm_mvhybrid.embed.image_slices import MOST_PIXELS, ImageSlices, cut_images
from timm_mvhybrid.embed.source_embedding import PlacedModel

FLOAT32 = DTypeChoice(dtype="float32")
CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Sets torch's number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def compute(slices, function, images, choice=FLOAT32):
    return slices.compute(function, images, partial(choice.context, CPU))


@pytest.mark.parametrize("num_images", [*range(1, 40), 64, 1000])
@pytest.mark.parametrize("side", [64, 150, 256, 512])
def test_slices_are_small_even_in_number_and_alike(num_images, side):
    sizes = cut_images(num_images, side * side)
    assert sum(sizes) == num_images
    assert max(sizes) == 1 or max(sizes) * side * side <= MOST_PIXELS
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == 1 or len(sizes) % 2 == 0


@pytest.mark.parametrize(
    ("num_threads", "num_images", "at_once", "each"),
    [(1, 64, 1, 1), (2, 64, 2, 1), (3, 10, 3, 1), (4, 2, 2, 2), (4, 1, 1, 4)],
)
def test_threads_share_the_slices_and_each_computes_with_its_part_of_them(
    threads, num_threads, num_images, at_once, each
):
    threads(num_threads)
    images = torch.arange(1.0 * num_images).view(num_images, 1, 1, 1).expand(-1, 3, 256, 256)
    seen = set()
    # all that may be at work are, before the first one goes on
    meeting = threading.Barrier(at_once)
    first = threading.local()

    def function(part):
        if not hasattr(first, "came"):
            first.came = True
            meeting.wait(timeout=60)
        seen.add((threading.get_ident(), torch.get_num_threads()))
        assert torch.is_inference_mode_enabled()
        return part * 2

    assert torch.equal(compute(ImageSlices(), function, images), images * 2)
    assert len(seen) == at_once
    assert {number for _, number in seen} == {each}
    assert torch.get_num_threads() == num_threads
    # a thread that is new takes the process's number
    found = []
    new = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert found == [num_threads]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_do_not_depend_on_the_number_of_threads(threads, dtype):
    backbone = load_backbone("test_mvhybrid", dynamic_img_size=True)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (21, 3, 160, 160), dtype=np.uint8))
    found = []
    for num_threads in (1, 2, 3, 6):
        threads(num_threads)
        placed = PlacedModel(backbone, device="cpu", pool="model", dtype="float32", input_size="auto")
        with torch.inference_mode():
            found.append(placed.vectors(images, DTypeChoice(dtype=dtype)))
    assert found[0].shape == (21, 64)
    assert all(np.array_equal(each, found[0]) for each in found[1:])
    threads(1)
    mean, std = (torch.tensor(backbone.model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode(), DTypeChoice(dtype=dtype).context(CPU):
        parts = images.split(cut_images(21, 160 * 160))
        alone = torch.cat([backbone.model((part.float() / 255 - mean) / std) for part in parts])
    assert np.array_equal(found[0], alone.float().numpy())


def test_the_context_is_that_of_each_thread(threads):
    threads(2)
    weight = torch.ones(3, 3)
    found = compute(
        ImageSlices(), lambda part: part @ weight, torch.ones(16, 3, 3, 3), DTypeChoice(dtype="bfloat16")
    )
    assert found.dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("num_threads", [1, 2])
def test_of_several_errors_the_first_slices_is_raised_and_the_rest_is_left(threads, num_threads):
    threads(num_threads)
    images = torch.arange(400.0).view(400, 1, 1, 1).expand(-1, 1, 256, 256)
    done = []

    def function(part):
        number = part[0, 0, 0, 0].item()
        done.append(number)
        if number >= 4:
            raise ValueError(f"slice of image {number:.0f}")
        time.sleep(0.2)
        return part

    with pytest.raises(ValueError, match=r"slice of image 4$"):
        compute(ImageSlices(), function, images)
    assert len(done) <= 2 + 2 * num_threads
    assert torch.get_num_threads() == num_threads


def test_threads_end_with_what_they_are_for_and_hold_up_no_process(threads):
    threads(2)
    slices = ImageSlices()
    others = set(threading.enumerate())
    for _ in range(3):
        compute(slices, torch.clone, torch.zeros(64, 1, 256, 256))
    started = set(threading.enumerate()) - others
    assert len(started) == 2
    assert all(thread.daemon for thread in started)
    del slices
    for thread in started:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_context_that_cannot_be_made_is_an_error(threads, num_threads):
    threads(num_threads)

    def context():
        raise ValueError("no such type")

    slices = ImageSlices()
    with pytest.raises(ValueError, match="no such type"):
        slices.compute(torch.clone, torch.zeros(64, 1, 256, 256), context)
    # and its threads go on
    assert compute(slices, torch.clone, torch.zeros(64, 1, 256, 256)).shape == (64, 1, 256, 256)


def test_hooks_see_whole_batches():
    backbone = load_backbone("test_mvhybrid")
    seen = []
    backbone.model.norm.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    placed = PlacedModel(backbone, device="cpu", pool="model", dtype="float32", input_size="auto")
    with torch.inference_mode():
        placed.vectors(torch.zeros(9, 3, 64, 64, dtype=torch.uint8), FLOAT32)
    assert seen == [9]
