import io
import tarfile

import imagecodecs
import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image
from support.generated_patches import write_images

from timm_mvhybrid.data import DataError, FolderSource, PatchError, TarSource
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


@pytest.mark.parametrize("suffix", ["PNG", "jpeg", "tif", "TIFF", "bmp", "webp", "jp2", "j2k"])
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


COLOURS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
DEEP = COLOURS.astype(np.uint16) * 16
DEEP_ALPHA = np.dstack([DEEP, np.full(DEEP.shape[:2], 65535, np.uint16)])
DEEP_FILES = {
    "grey.png": lambda: imagecodecs.png_encode(DEEP[..., 0].copy()),
    "grey_alpha.png": lambda: imagecodecs.png_encode(DEEP_ALPHA[..., 2:].copy()),
    "rgb.png": lambda: imagecodecs.png_encode(DEEP),
    "rgba.png": lambda: imagecodecs.png_encode(DEEP_ALPHA),
    "rgb.jp2": lambda: imagecodecs.jpeg2k_encode(DEEP, level=0),
    "rgb12.j2k": lambda: imagecodecs.jpeg2k_encode(DEEP, level=0, bitspersample=12, codecformat="j2k"),
    "grey.jp2": lambda: imagecodecs.jpeg2k_encode(DEEP[..., 0].copy(), level=0),
    **{
        f"{name}_{compression}.tif": lambda options=options, compression=compression: tiff(
            compression=compression, **options
        )
        for compression in (None, "deflate", "lzw")
        for name, options in {
            "grey": {"data": DEEP[..., 0], "photometric": "minisblack"},
            "rgb": {"data": DEEP, "photometric": "rgb"},
            "rgb_planes": {
                "data": np.moveaxis(DEEP, 2, 0).copy(),
                "photometric": "rgb",
                "planarconfig": "separate",
            },
            "rgba": {"data": DEEP_ALPHA, "photometric": "rgb", "extrasamples": ["unassalpha"]},
            "cmyk": {"data": DEEP_ALPHA, "photometric": "separated"},
        }.items()
    },
}


def tiff(**options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, metadata=None, **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", DEEP_FILES)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_more_than_eight_bits_are_refused(tmp_path, name, kind):
    (tmp_path / name).write_bytes(DEEP_FILES[name]())
    source = FolderSource(tmp_path)
    if kind == "tar":
        with tarfile.open(tmp_path / "shard.tar", "w") as shard:
            shard.add(tmp_path / name, name)
        source = TarSource(tmp_path / "shard.tar")
    bits = 12 if "12" in name else 16
    with pytest.raises(PatchError, match=rf"{name}: .*more than 8 bits per channel \({bits}\).*8-bit RGB"):
        source[0]


@pytest.mark.parametrize("suffix", ["png", "jp2", "j2k", "tif"])
def test_eight_bits_come_unchanged(tmp_path, suffix):
    encode = {
        "png": imagecodecs.png_encode,
        "jp2": lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0),
        "j2k": lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k"),
        "tif": lambda pixels: tiff(data=pixels, photometric="rgb"),
    }[suffix]
    (tmp_path / f"image.{suffix}").write_bytes(encode(COLOURS))
    np.testing.assert_array_equal(FolderSource(tmp_path)[0], COLOURS)


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "minisblack"},
        {"imagej": True},
        {"photometric": "minisblack", "compression": "deflate"},
    ],
)
def test_grey_planes_are_refused(tmp_path, options):
    tifffile.imwrite(tmp_path / "planes.tif", np.moveaxis(COLOURS, 2, 0).copy(), **options)
    with pytest.raises(PatchError, match=r"planes\.tif: .*several grey channels.*write it as RGB"):
        FolderSource(tmp_path)[0]


def test_a_grey_image_may_carry_a_thumbnail(tmp_path):
    with tifffile.TiffWriter(tmp_path / "grey.tif") as writer:
        writer.write(COLOURS[..., 0], photometric="minisblack", metadata=None)
        writer.write(COLOURS[::4, ::4, 0].copy(), photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(np.asarray(FolderSource(tmp_path)[0])[..., 0], COLOURS[..., 0])


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "P", "L", "1"])
def test_other_colours_become_rgb(tmp_path, mode):
    image = Image.fromarray(COLOURS).convert(mode)
    image.save(tmp_path / "image.tif")
    try:
        Image.open(tmp_path / "image.tif").load()
    except OSError as error:
        pytest.skip(f"Pillow {PIL.__version__} does not read what it wrote: {error}")
    np.testing.assert_array_equal(FolderSource(tmp_path)[0], np.asarray(image.convert("RGB")))


def test_white_is_zero_is_turned(tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", 255 - COLOURS[..., 0], photometric="miniswhite", metadata=None)
    np.testing.assert_array_equal(np.asarray(FolderSource(tmp_path)[0])[..., 1], COLOURS[..., 0])


def test_images_of_other_kinds_are_reported(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "image.png")
    for name in ("a.gif", "b.gif", "c.ppm"):
        Image.fromarray(COLOURS).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.warns(
        UserWarning, match=r"left out are 2 \.gif such as .*a\.gif, 1 \.ppm such as .*c\.ppm; convert"
    ):
        assert FolderSource(tmp_path).paths == ["image.png"]
    (tmp_path / "image.png").unlink()
    with pytest.raises(DataError, match=r"the folder holds no image .*, only 2 \.gif such as"):
        FolderSource(tmp_path)
