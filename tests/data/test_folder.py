import numpy as np
import pytest
from PIL import Image
from support.generated_patches import write_images

from timm_mvhybrid.data import DataError, FolderSource, PatchError
from timm_mvhybrid.data.folder import on_white


def test_images_come_sorted_with_relative_paths(tmp_path):
    expected = write_images(tmp_path / "images", 5)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"")
    (tmp_path / "images" / ".cache").mkdir()
    (tmp_path / "images" / ".cache" / "x.png").write_bytes(b"")
    source = FolderSource(tmp_path / "images")
    assert source.paths == expected == ["00.jpg", "02.jpg", "04.jpg", "b/01.png", "b/03.png"]
    assert len(source) == 5
    np.testing.assert_array_equal(source[3], np.asarray(Image.open(tmp_path / "images" / "b" / "01.png")))
    assert source.name(3).endswith("images/b/01.png")


@pytest.mark.parametrize("suffix", ["PNG", "jpeg", "tif", "TIFF", "bmp", "webp"])
def test_every_suffix_is_found(tmp_path, suffix):
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / f"image.{suffix}")
    assert FolderSource(tmp_path)[0].size == (8, 8)


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: the folder holds no image"):
        FolderSource(tmp_path / "empty")


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_broken_image(tmp_path, damage, suffix):
    path = tmp_path / f"broken.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no image", "truncated": content[: len(content) // 2]}[damage])
    with pytest.raises(PatchError, match=rf"broken\.{suffix}: not a readable image"):
        FolderSource(tmp_path)[0]


def test_transparency_becomes_white():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert np.asarray(on_white(image)).tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_grey_and_palette_become_rgb():
    assert on_white(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)
    assert on_white(Image.new("RGB", (1, 1), (9, 8, 7)).convert("P")).mode == "RGB"


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(PatchError, match=r"deep\.png.*more than 8 bits"):
        FolderSource(tmp_path)[0]
