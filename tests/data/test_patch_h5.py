import pickle

import h5py
import numpy as np
import pytest
from support.generated_patches import random_patches, write_clam_patches, write_hest

from timm_mvhybrid.data import DataError, PatchError, PatchH5Source


def test_hest(tmp_path):
    patches = random_patches(4, 224)
    barcodes = write_hest(tmp_path / "hest.h5", patches)
    source = PatchH5Source(tmp_path / "hest.h5")
    assert len(source) == 4
    assert source.barcodes == barcodes
    assert source.coords.tolist() == [[0, 7], [14, 21], [28, 35], [42, 49]]
    assert source.coords.dtype == np.int64
    assert source.patch_size_px == 224
    assert source.resolution_um_per_px == 0.5
    np.testing.assert_array_equal(source[2], patches[2])
    assert "SPOT-002" in source.name(2)


def test_older_clam_coordinates_become_level_0_pixels(tmp_path):
    patches = random_patches(3)
    write_clam_patches(tmp_path / "clam.h5", patches)
    source = PatchH5Source(tmp_path / "clam.h5")
    # level 1 is 4 times smaller, and CLAM's own reduction halves it once more
    assert source.coords.tolist() == [[0, 8], [16, 24], [32, 40]]
    assert source.barcodes is None
    assert source.resolution_um_per_px is None
    np.testing.assert_array_equal(source[1], patches[1])


def test_pixels_alone_are_enough(tmp_path):
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["img"] = random_patches(2)
    source = PatchH5Source(tmp_path / "plain.h5")
    assert source.coords is None
    assert source[1].shape == (64, 64, 3)


def test_oblong_patches_have_no_side(tmp_path):
    with h5py.File(tmp_path / "oblong.h5", "w") as file:
        file["img"] = random_patches(2)[:, :32]
    assert PatchH5Source(tmp_path / "oblong.h5").patch_size_px is None


def test_pickles_hold_no_handle(tmp_path):
    patches = random_patches(2)
    write_hest(tmp_path / "hest.h5", patches)
    source = PatchH5Source(tmp_path / "hest.h5")
    np.testing.assert_array_equal(source[0], patches[0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[1], patches[1])


@pytest.mark.parametrize("flat", [False, True])
def test_duplicate_barcode(tmp_path, flat):
    write_hest(tmp_path / "hest.h5", random_patches(3), ["A", "B", "A"])
    if flat:
        with h5py.File(tmp_path / "hest.h5", "a") as file:
            values = file["barcode"][:, 0]
            del file["barcode"]
            file.create_dataset("barcode", data=values, dtype=h5py.string_dtype("utf-8"))
    with pytest.raises(DataError, match=r"hest\.h5.*'barcode'.*'A' occurs more than once"):
        PatchH5Source(tmp_path / "hest.h5")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "img",
            np.zeros((3, 64, 64), np.uint8),
            r"'img' must have the shape \(N, H, W, 3\), not \(3, 64, 64\)",
        ),
        ("img", np.zeros((3, 64, 64, 4), np.uint8), r"'img' must have the shape"),
        ("img", np.zeros((3, 64, 64, 3), np.float32), r"'img' must be uint8, not float32"),
        ("img", np.zeros((0, 64, 64, 3), np.uint8), r"'img' is empty"),
        ("coords", np.zeros((3, 3), np.int64), r"'coords' must have the shape \(N, 2\), not \(3, 3\)"),
        ("coords", np.zeros((2, 2), np.int64), r"'coords' has 2 rows for 3 patches"),
        ("coords", np.full((3, 2), np.nan), r"'coords' holds NaN"),
        ("coords", np.array([[b"a", b"b"]] * 3), r"'coords' must hold numbers"),
        ("barcode", np.array([[b"A"], [b"B"]]), r"'barcode' must have the shape \(3, 1\), not \(2, 1\)"),
        ("barcode", np.zeros((3, 1)), r"'barcode' must hold strings, not float64"),
    ],
)
def test_wrong_datasets_are_named(tmp_path, name, value, message):
    write_hest(tmp_path / "wrong.h5", random_patches(3))
    with h5py.File(tmp_path / "wrong.h5", "a") as file:
        del file[name]
        file[name] = value
    with pytest.raises(DataError, match=rf"wrong\.h5: dataset {message}"):
        PatchH5Source(tmp_path / "wrong.h5")


def test_damaged_chunk_is_a_patch_error(tmp_path):
    path = tmp_path / "damaged.h5"
    with h5py.File(path, "w") as file:
        images = file.create_dataset("img", data=random_patches(2), chunks=(1, 64, 64, 3), compression="gzip")
        chunk = images.id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)
    source = PatchH5Source(path)
    assert source[0].shape == (64, 64, 3)
    with pytest.raises(PatchError, match=r"damaged\.h5 patch 1: unreadable"):
        source[1]
