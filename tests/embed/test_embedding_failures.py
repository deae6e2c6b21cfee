import math
import os

import h5py
import numpy as np
import pytest
import torch
from support.generated_patches import random_patches, write_hest, write_images

from timm_mvhybrid.data import DataError, FolderSource, PatchH5Source
from timm_mvhybrid.evaluate import Backbone, BatchReport, EvaluationError, embed, load_backbone
from timm_mvhybrid.runtime.errors import ParameterError

# where the loop looks up what turns images into vectors
COMPUTE = "timm_mvhybrid.embed.source_embedding.pooled_features"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("test_mvhybrid")


@pytest.fixture
def hest(tmp_path) -> PatchH5Source:
    write_hest(tmp_path / "hest.h5", random_patches(7))
    return PatchH5Source(tmp_path / "hest.h5")


def read(path) -> dict:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file} | {"attributes": dict(file.attrs)}


def damage(tmp_path, *names: str) -> FolderSource:
    paths = write_images(tmp_path / "images", 5)
    for name in names or paths:
        (tmp_path / "images" / name).write_bytes(b"no image")
    return FolderSource(tmp_path / "images")


def test_corrupt_image_stops_by_default(tmp_path, backbone):
    source = damage(tmp_path, "02.jpg")
    with pytest.raises(DataError, match=r"images/02\.jpg: not a readable image.*`skip_corrupt=True`"):
        embed(source, backbone, tmp_path / "out.h5", device="cpu", batch_size=1)
    assert sorted(os.listdir(tmp_path)) == ["images"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skip_corrupt_leaves_patches_out_of_every_dataset(tmp_path, backbone, num_workers):
    source = damage(tmp_path, "02.jpg", "b/01.png")
    reports: list[BatchReport] = []
    options = {"batch_size": 2, "device": "cpu", "num_workers": num_workers}
    summary = embed(
        source, backbone, tmp_path / "out.h5", skip_corrupt=True, on_batch=reports.append, **options
    )
    result = read(tmp_path / "out.h5")
    assert [path.decode() for path in result["paths"]] == ["00.jpg", "04.jpg", "b/03.png"]
    assert result["embeddings"].shape == (3, 64)
    assert result["attributes"]["num_corrupt"] == summary.num_corrupt == 2
    errors = [error for report in reports for error in report.errors]
    assert len(errors) == 2
    assert "02.jpg" in errors[0]
    assert "b/01.png" in errors[1]
    (tmp_path / "images" / "02.jpg").unlink()
    (tmp_path / "images" / "b" / "01.png").unlink()
    embed(FolderSource(tmp_path / "images"), backbone, tmp_path / "clean.h5", **options)
    np.testing.assert_allclose(
        result["embeddings"], read(tmp_path / "clean.h5")["embeddings"], rtol=1e-4, atol=1e-5
    )


def test_all_corrupt_is_an_error_even_with_skip(tmp_path, backbone):
    source = damage(tmp_path)
    with pytest.raises(DataError, match=r"images: none of its 5 patches can be read"):
        embed(source, backbone, tmp_path / "out.h5", device="cpu", skip_corrupt=True)
    assert sorted(os.listdir(tmp_path)) == ["images"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_infinite_embeddings_name_the_first_patch(tmp_path, hest, backbone, monkeypatch, value):
    def broken(model, images, pooling):
        vectors = torch.zeros(len(images), 4)
        vectors[1, 2] = value
        return vectors

    monkeypatch.setattr(COMPUTE, broken)
    with pytest.raises(EvaluationError, match=r"hest\.h5 patch 1 \(SPOT-001.*NaN or infinite"):
        embed(hest, backbone, tmp_path / "out.h5", device="cpu")
    assert os.listdir(tmp_path) == ["hest.h5"]


def _cpu_allocator(model, images, pooling):
    return torch.empty(1 << 60, dtype=torch.uint8)


def _cuda_allocator(model, images, pooling):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize("allocate", [_cpu_allocator, _cuda_allocator])
def test_out_of_memory_names_batch_size_and_remedy(tmp_path, hest, backbone, monkeypatch, allocate):
    monkeypatch.setattr(COMPUTE, allocate)
    with pytest.raises(EvaluationError, match=r"out of memory on cpu with a batch of 6; try `batch_size=3`"):
        embed(hest, backbone, tmp_path / "out.h5", device="cpu", batch_size=6)
    assert os.listdir(tmp_path) == ["hest.h5"]


def test_other_runtime_errors_keep_their_class(tmp_path, hest, backbone, monkeypatch):
    def broken(model, images, pooling):
        raise RuntimeError("a bug")

    monkeypatch.setattr(COMPUTE, broken)
    with pytest.raises(RuntimeError, match="a bug") as caught:
        embed(hest, backbone, tmp_path / "out.h5", device="cpu")
    assert not isinstance(caught.value, EvaluationError)
    assert os.listdir(tmp_path) == ["hest.h5"]


def test_interrupt_leaves_nothing(tmp_path, hest, backbone):
    def interrupt(report):
        assert any(name.endswith(".tmp") for name in os.listdir(tmp_path))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(hest, backbone, tmp_path / "out.h5", device="cpu", on_batch=interrupt)
    assert os.listdir(tmp_path) == ["hest.h5"]


def test_failure_keeps_the_file_that_was_to_be_replaced(tmp_path, hest, backbone, monkeypatch):
    embed(hest, backbone, tmp_path / "out.h5", device="cpu")
    before = (tmp_path / "out.h5").read_bytes()
    monkeypatch.setattr(COMPUTE, _cuda_allocator)
    with pytest.raises(EvaluationError, match="out of memory"):
        embed(hest, backbone, tmp_path / "out.h5", device="cpu", overwrite=True)
    assert (tmp_path / "out.h5").read_bytes() == before


def test_nothing_is_computed_if_the_output_exists(tmp_path, hest, backbone, monkeypatch):
    monkeypatch.setattr(COMPUTE, lambda *_: pytest.fail("computed"))
    (tmp_path / "out.h5").write_text("kept")
    with pytest.raises(EvaluationError, match=r"out\.h5: exists already; replace it with `overwrite=True`"):
        embed(hest, backbone, tmp_path / "out.h5", device="cpu")
    assert (tmp_path / "out.h5").read_text() == "kept"


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"num_workers": -1}])
def test_counts_out_of_range(tmp_path, hest, backbone, options):
    with pytest.raises(ParameterError, match="`batch_size` must be at least 1 and `num_workers` at least 0"):
        embed(hest, backbone, tmp_path / "out.h5", device="cpu", **options)
