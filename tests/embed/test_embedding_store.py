import os

import h5py
import numpy as np
import pytest
from support.evaluation_goldens import FOLDER
from support.generated_patches import random_patches, write_hest

from timm_mvhybrid.cohorts.bags import read_bags
from timm_mvhybrid.data import DataError, open_source
from timm_mvhybrid.embed.embedding_store import EmbeddingWriter, read_batches, read_embeddings
from timm_mvhybrid.evaluate import EvaluationError, check_output


def test_free_output_passes(tmp_path):
    check_output(tmp_path / "out.h5", overwrite=False)
    (tmp_path / "out.h5").write_text("old")
    check_output(tmp_path / "out.h5", overwrite=True)


def test_outputs_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"missing/out\.h5: the output folder .*missing does not exist"):
        check_output(tmp_path / "missing" / "out.h5", overwrite=False)
    with pytest.raises(EvaluationError, match="does not exist"):
        check_output(tmp_path / "file" / "out.h5", overwrite=False)
    with pytest.raises(EvaluationError, match="is a folder; name a file"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(EvaluationError, match="exists already; replace it with `overwrite=True`"):
        check_output(tmp_path / "file", overwrite=False)
    with pytest.raises(EvaluationError, match="is the input itself"):
        check_output(tmp_path / "file", overwrite=True, source=tmp_path / "file")
    # tests may run as root, who may write everywhere
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EvaluationError, match=r"the output folder .* is not writable"):
        check_output(tmp_path / "out.h5", overwrite=False)


def test_leaving_without_finish_removes_everything(tmp_path):
    with EmbeddingWriter(tmp_path / "out.h5") as writer:
        writer.append(np.zeros((2, 3), np.float32), [0, 1])
        assert writer.embedding_dim == 3
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == []


def test_what_is_written_is_read_back(tmp_path):
    write_hest(tmp_path / "patches.h5", random_patches(5), list("abcde"))
    embeddings = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    with EmbeddingWriter(tmp_path / "out.h5") as writer:
        writer.append(embeddings[:2], [0, 1])
        writer.append(embeddings[2:], [3, 4])
        writer.describe(open_source(tmp_path / "patches.h5"), {"model": "m", "weights": "w", "mean": None})
        writer.finish()
    found = read_embeddings(tmp_path / "out.h5")
    np.testing.assert_array_equal(found.embeddings, embeddings)
    assert found.embeddings.dtype == np.float32
    assert found.barcodes == ["a", "b", "d", "e"]
    assert (found.model, found.weights, found.weights_sha256) == ("m", "w", "unknown")


def test_files_of_earlier_versions_are_read():
    file = FOLDER / "embeddings.h5"
    found = read_embeddings(file)
    with h5py.File(file) as content:
        np.testing.assert_array_equal(found.embeddings, content["embeddings"][()])
    assert (found.embeddings.shape, found.barcodes) == ((4, 64), list("abcd"))
    assert (found.model, found.weights, found.weights_sha256) == ("test_mvhybrid", "random", "random")
    bags, record = read_bags(FOLDER, ["embeddings"])
    np.testing.assert_array_equal(bags[0], found.embeddings)
    assert (record.name, record.embedding_dim, record.num_patches) == ("test_mvhybrid", 64, 4)


@pytest.mark.parametrize("shape", [(4, 3), (1, 4, 3)])
def test_files_of_other_tools_are_read(tmp_path, shape):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.arange(12, dtype=np.float16).reshape(shape)
        file["barcodes"] = np.arange(4)
    found = read_embeddings(tmp_path / "a.h5")
    np.testing.assert_array_equal(found.embeddings, np.arange(12, dtype=np.float32).reshape(4, 3))
    assert found.barcodes is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((0, 3)), r"'embeddings' must be \(patches, dim\) floats"),
        (np.zeros((2, 3), np.int64), "must be .* floats, not .* int64"),
        (np.zeros((2, 2, 3)), "must be .* floats"),
        (np.array([[0.0], [np.inf]]), "patch 1 holds NaN or infinite values"),
    ],
)
def test_what_is_not_embeddings_is_refused(tmp_path, values, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["embeddings"] = values
    with pytest.raises(DataError, match=rf"a\.h5: .*{message}"):
        read_embeddings(tmp_path / "a.h5")


@pytest.mark.parametrize("num_rows", [1, 4, 5, 11, 100])
@pytest.mark.parametrize("as_bag", [False, True])
def test_batches_are_the_rows_in_their_order(tmp_path, num_rows, as_bag):
    expected = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = expected[None] if as_bag else expected
    batches = list(read_batches(tmp_path / "a.h5", num_rows))
    assert [len(batch) for batch in batches] == [
        min(num_rows, 11 - start) for start in range(0, 11, num_rows)
    ]
    np.testing.assert_array_equal(np.concatenate(batches), expected)
    np.testing.assert_array_equal(read_embeddings(tmp_path / "a.h5").embeddings, expected)


def test_a_batch_with_a_value_that_is_not_finite_names_its_patch(tmp_path):
    values = np.ones((11, 3), np.float32)
    values[7, 1] = np.nan
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["embeddings"] = values
    batches = read_batches(tmp_path / "a.h5", 4)
    assert len(next(batches)) == 4
    with pytest.raises(DataError, match=r"a\.h5: patch 7 holds NaN or infinite values"):
        next(batches)


def test_no_batch_is_read_of_what_is_no_embedding_file(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"no h5")
    with pytest.raises(DataError, match=r"a\.h5: cannot be opened as an h5 file"):
        next(read_batches(tmp_path / "a.h5"))


def test_a_file_of_few_patches_is_small(tmp_path):
    write_hest(tmp_path / "patches.h5", random_patches(3, 16))
    source = open_source(tmp_path / "patches.h5")
    embeddings = np.ones((3, 1024), np.float32)
    with EmbeddingWriter(tmp_path / "few.h5", num_rows=3) as writer:
        writer.append(embeddings, range(3))
        writer.describe(source, {})
        writer.finish()
    # HDF5 stores whole chunks; the rest is its own description of the file
    assert (tmp_path / "few.h5").stat().st_size < embeddings.nbytes + 16_384
