"""The cache's files: written once, by one process at a time, and cleaned of what killed ones left."""

import threading
import time

import h5py
import numpy as np
import pytest
from support.generated_patches import random_patches, write_hest

from timm_mvhybrid.data import PatchH5Source
from timm_mvhybrid.embed.backbone import load_backbone
from timm_mvhybrid.embed.embedding_cache import EmbeddingOptions, embed_into_cache
from timm_mvhybrid.embed.embedding_store import read_embeddings
from timm_mvhybrid.runtime.atomic_file import claimed


@pytest.fixture
def source(tmp_path):
    write_hest(tmp_path / "hest.h5", random_patches(5))
    return PatchH5Source(tmp_path / "hest.h5")


@pytest.fixture
def embed(source, tmp_path):
    options = EmbeddingOptions(device="cpu")
    backbone = load_backbone("test_vit12")
    return lambda folder="cache": embed_into_cache(source, backbone, tmp_path / folder / "a.h5", options)


def test_a_file_is_written_once(embed, tmp_path):
    assert embed().num_patches == 5
    before = (tmp_path / "cache" / "a.h5").stat().st_mtime_ns
    assert embed() is None
    assert (tmp_path / "cache" / "a.h5").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["cut", "shorter", "other barcodes", "not finite"])
def test_a_file_that_does_not_fit_is_written_again(embed, tmp_path, damage):
    file = tmp_path / "cache" / "a.h5"
    embed()
    expected = read_embeddings(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-2000])
    else:
        with h5py.File(file, "r+") as content:
            if damage == "shorter":
                content["embeddings"].resize(4, axis=0)
            elif damage == "other barcodes":
                content["barcodes"][2] = "another"
            else:
                content["embeddings"][1, 1] = np.inf
    assert embed().num_patches == 5
    np.testing.assert_array_equal(read_embeddings(file).embeddings, expected.embeddings)
    assert read_embeddings(file).barcodes == expected.barcodes


def test_what_killed_processes_left_is_removed_and_nothing_else(embed, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    others = (".b.h5.0123abcd.tmp", ".a.h5.notes", ".a.h5.0123abcd.txt")
    for name in (".a.h5.0123abcd.tmp", *others):
        (folder / name).write_bytes(b"half")
    embed()
    assert sorted(path.name for path in folder.iterdir()) == sorted(["a.h5", *others])


def test_a_second_process_waits_and_then_embeds_nothing(embed, tmp_path):
    (tmp_path / "cache").mkdir()
    assert embed("elsewhere").num_patches == 5
    found = []
    with claimed(tmp_path / "cache" / "a.h5"):
        waiting = threading.Thread(target=lambda: found.append(embed()))
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
        # what the owner of the claim writes meanwhile
        (tmp_path / "elsewhere" / "a.h5").rename(tmp_path / "cache" / "a.h5")
    waiting.join(60)
    assert found == [None]
