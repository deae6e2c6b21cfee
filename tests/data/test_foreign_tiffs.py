"""TIFFs that others wrote: right colours, or one sentence that names the file and what it holds."""

import re
import sys

import numpy as np
import pytest
import tifffile
from support.foreign_tiffs import KINDS, PIXELS, PLANES, write_kind, write_ome, write_truncations
from support.generated_slides import REAL_SLIDE, write_odd_pyramid, write_slide

from timm_mvhybrid.cli import main
from timm_mvhybrid.data import DataError, Slide, SlideSource, TilingOptions

# CMYK and YCbCr are rounded to 8 bits twice, JPEG at quality 98 quantises
TOLERANCE = 6
REFUSED = {
    "rgb and unknown": "4 samples per pixel.*ExtraSamples",
    "rgb 16 bits": r"16 bits per channel \(uint16\).*8-bit RGB",
    "grey 16 bits": "16 bits per channel",
    "cmyk 16 bits": "16 bits per channel",
    "rgb float": r"32 bits per channel \(float32\)",
    "three grey pages": "3 grey channels",
    "five grey pages": "5 grey channels",
    "three grey samples": "3 grey channels",
    "three grey sample planes": "3 grey channels",
}
REFUSED_BY_TIFFSLIDE = {
    "rgb planes": "PlanarConfiguration",
    "rgba premultiplied": "ExtraSamples",
    "palette": r"PALETTE \(tag PhotometricInterpretation\)",
    "cmyk": r"SEPARATED \(tag PhotometricInterpretation\)",
    "ycbcr": r"YCBCR \(tag PhotometricInterpretation\)",
    "white is zero": r"MINISWHITE \(tag PhotometricInterpretation\)",
    "bilevel": r"1 bits per channel \(tag BitsPerSample\)",
}


def _missing(path):
    raise ImportError


@pytest.fixture(params=["both libraries", "tiffslide alone"])
def libraries(request, monkeypatch):
    if request.param == "tiffslide alone":
        monkeypatch.setattr("timm_mvhybrid.data.slide._openslide", _missing)
    return request.param


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "strips"])
@pytest.mark.parametrize("kind", KINDS)
def test_right_colours_or_a_refusal_by_tag(tmp_path, libraries, kind, tiled):
    path = tmp_path / "foreign.tif"
    meant = write_kind(path, kind, tiled=tiled)
    openslide_reads = libraries == "both libraries" and tiled and kind != "bilevel"
    refusal = REFUSED.get(kind) or (None if openslide_reads else REFUSED_BY_TIFFSLIDE.get(kind))
    assert (meant is None) <= (kind in REFUSED)
    if refusal is not None:
        with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: [^\n]*{refusal}[^\n]*$"):
            Slide(path)
        return
    patch = np.asarray(Slide(path).read((50, 40), (200, 190), (200, 190)))
    assert np.abs(patch.astype(int) - meant[40:230, 50:250]).max() <= TOLERANCE


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "strips"])
@pytest.mark.parametrize(
    "channels",
    [{"Name": ["Red", "Green", "Blue"]}, {"Color": [-16776961, 16711935, 65535]}],
    ids=["named", "coloured"],
)
def test_three_planes_that_state_their_colours_are_colours(tmp_path, libraries, channels, tiled):
    write_ome(tmp_path / "planes.ome.tif", PLANES, axes="CYX", tiled=tiled, levels=2, Channel=channels)
    slide = Slide(tmp_path / "planes.ome.tif")
    assert slide.level_dimensions == [(320, 300), (160, 150)]
    patch = np.asarray(slide.read((50, 40), (200, 190), (200, 190)))
    np.testing.assert_array_equal(patch, PIXELS[40:230, 50:250])


@pytest.mark.parametrize(
    ("colours", "refusal"),
    [([4278190335, 16711935, 65535], None), (["#FF0000", "0", "0"], "3 grey channels")],
)
def test_colours_of_channels_as_others_write_them(tmp_path, colours, refusal):
    write_ome(tmp_path / "planes.ome.tif", PLANES, axes="CYX", Channel={"Color": [1, 2, 3]})
    xml = tifffile.tiffcomment(tmp_path / "planes.ome.tif")
    for number, colour in enumerate(colours, 1):
        xml = xml.replace(f'Color="{number}"', f'Color="{colour}"')
    tifffile.tiffcomment(tmp_path / "planes.ome.tif", xml.encode())
    if refusal is None:
        assert np.asarray(Slide(tmp_path / "planes.ome.tif").read((5, 4), (1, 1), (1, 1))).tolist() == [
            [PIXELS[4, 5].tolist()]
        ]
        return
    with pytest.raises(DataError, match=rf"planes\.ome\.tif: {refusal}"):
        Slide(tmp_path / "planes.ome.tif")


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "strips"])
@pytest.mark.parametrize("names", [None, ["DAPI", "FITC", "Cy5"], ["Blue", "Green", "Red"]])
def test_other_planes_are_named(tmp_path, libraries, names, tiled):
    channels = {} if names is None else {"Channel": {"Name": names}}
    write_ome(tmp_path / "planes.ome.tif", PLANES, axes="CYX", tiled=tiled, levels=2, **channels)
    stated = "3 grey channels" + ("" if names is None else rf" \({', '.join(names)}\)")
    with pytest.raises(DataError, match=rf"planes\.ome\.tif: {stated}, not colours"):
        Slide(tmp_path / "planes.ome.tif")


def test_a_grey_slide_says_why_no_tissue_is_found(tmp_path):
    write_kind(tmp_path / "grey.tif", "black is zero", tiled=True)
    with pytest.raises(DataError, match=r"grey\.tif: the slide is grey.*`min_tissue=0`"):
        SlideSource(tmp_path / "grey.tif", TilingOptions(patch_size_px=64))
    assert len(SlideSource(tmp_path / "grey.tif", TilingOptions(patch_size_px=64, min_tissue=0.0))) == 20


@pytest.mark.parametrize(
    ("size", "unit"), [(0.25, None), (0.25, "µm"), (250, "nm"), (0.00025, "mm"), (2.5e-7, "m"), (2500, "Å")]
)
def test_resolution_by_ome_xml_alone(tmp_path, libraries, size, unit):
    units = {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    write_ome(tmp_path / "slide.ome.tif", PhysicalSizeX=size, PhysicalSizeY=size, **units)
    assert Slide(tmp_path / "slide.ome.tif").resolution_um_per_px == pytest.approx(0.25)


@pytest.mark.parametrize("unit", ["pixel", "reference frame"])
def test_lengths_without_a_measure_are_no_resolution(tmp_path, unit):
    write_ome(
        tmp_path / "slide.ome.tif",
        PhysicalSizeX=0.25,
        PhysicalSizeY=0.25,
        PhysicalSizeXUnit=unit,
        PhysicalSizeYUnit=unit,
    )
    with pytest.raises(DataError, match=r"slide\.ome\.tif: the slide states no usable resolution"):
        SlideSource(tmp_path / "slide.ome.tif")


def test_ome_xml_goes_before_the_tags(tmp_path, libraries):
    tags = {"resolution": (72, 72), "resolutionunit": "INCH"}
    write_ome(tmp_path / "slide.ome.tif", PhysicalSizeX=0.25, PhysicalSizeY=0.25, tags=tags)
    assert Slide(tmp_path / "slide.ome.tif").resolution_um_per_px == pytest.approx(0.25)


def test_tags_serve_where_ome_xml_states_no_size(tmp_path, libraries):
    write_ome(tmp_path / "slide.ome.tif", tags={"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"})
    assert Slide(tmp_path / "slide.ome.tif").resolution_um_per_px == pytest.approx(0.5)


WRITERS = {
    "real.svs": lambda path: path.write_bytes(REAL_SLIDE.read_bytes()),
    "odd.svs": write_odd_pyramid,
    "pyramid.tif": write_slide,
    "strips.tif": lambda path: write_kind(path, "rgb", tiled=False),
    "levels.ome.tif": lambda path: write_ome(path, levels=3, PhysicalSizeX=0.5, PhysicalSizeY=0.5),
}


@pytest.mark.parametrize("name", WRITERS)
def test_truncated_files_are_refused_in_one_sentence(tmp_path, libraries, name, capfd):
    options = TilingOptions(patch_size_px=64, min_tissue=0.0, slide_resolution_um_per_px=0.5)
    cuts = write_truncations(tmp_path, name, WRITERS[name], 17)
    for path in cuts:
        with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: [^\n]+$"):
            SlideSource(path, options)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["odd.svs", "strips.tif", "levels.ome.tif"])
def test_files_truncated_while_they_are_read(tmp_path, libraries, name):
    path = tmp_path / name
    WRITERS[name](path)
    slide = Slide(path, 0.5)
    step = 64
    corners = [
        (x, y) for y in range(0, slide.dimensions[1], step) for x in range(0, slide.dimensions[0], step)
    ]
    whole = {corner: np.asarray(slide.read_level(corner, 0, (step, step))) for corner in corners}
    slide.close()
    slide.handle.level_dimensions  # noqa: B018
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    refusals = []
    for corner in corners:
        try:
            patch = np.asarray(slide.read_level(corner, 0, (step, step)))
        except DataError as error:
            refusals.append(str(error))
        else:
            np.testing.assert_array_equal(patch, whole[corner])
    assert refusals
    assert all(re.fullmatch(rf"{re.escape(str(path))}: .+", message) for message in refusals)


def test_tile_names_the_file_and_goes_on(tmp_path, capsys):
    write_kind(tmp_path / "planes.tif", "rgb planes", tiled=False)
    write_kind(tmp_path / "pages.tif", "three grey pages", tiled=False)
    write_kind(tmp_path / "good.tif", "rgb", tiled=False)
    (tmp_path / "cut.svs").write_bytes(REAL_SLIDE.read_bytes()[:100_000])
    slides = [str(tmp_path / name) for name in ("planes.tif", "pages.tif", "cut.svs", "good.tif")]
    options = ["--output", str(tmp_path / "store"), "--patch-size", "64", "--min-tissue", "0"]
    assert main(["tile", *slides, *options]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == slides[:3]
    assert (tmp_path / "store" / "good.h5").exists()


def test_without_tifffile_a_warning_says_what_is_not_checked(tmp_path, monkeypatch):
    write_kind(tmp_path / "slide.tif", "rgb", tiled=True)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.warns(UserWarning, match=r"slide\.tif: .*not checked.*tifffile is not installed"):
        Slide(tmp_path / "slide.tif")
