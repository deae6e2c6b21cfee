"""Samples are added to a task whole or not at all, whatever ends the process, and nothing of others is lost."""

import json
import os
import shutil
import signal
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from timm_mvhybrid.cohorts import PatchOptions, SpotSample, prepare_sample
from timm_mvhybrid.cohorts import prepare as prepare_module
from timm_mvhybrid.cohorts.hest_layout import open_task, read_sample
from timm_mvhybrid.cohorts.spot_patches import SpotPatches
from timm_mvhybrid.data import DataError, PatchH5Source
from timm_mvhybrid.runtime.errors import OutputError, ParameterError

NUM_SPOTS = 70
"""More than are written at a time."""
PATCHES = PatchOptions(patch_size_px=8, resolution_um_per_px=2.0)


def spot_sample(sample_id="S", **changed):
    draw = np.random.default_rng(0)
    places = np.stack(
        [10.0 + 10 * (np.arange(NUM_SPOTS) % 10), 5.0 + 10 * (np.arange(NUM_SPOTS) // 10)], axis=1
    )
    values = {
        "sample_id": sample_id,
        "barcodes": tuple(f"b{number}" for number in range(NUM_SPOTS)),
        "genes": ("A", "B", "C"),
        "counts": sparse.csr_matrix(draw.poisson(2, (NUM_SPOTS, 3))),
        "spatial": places,
        "um_per_px": 1.0,
        **changed,
    }
    return SpotSample(**values)


@dataclass(frozen=True)
class Source:
    """A source of one option, whose file says how many counts to add."""

    folder: Path
    min_counts: int = 0

    @property
    def files(self):
        return (self.folder / "added.txt",)

    def read(self, sample_id, patches):
        sample = spot_sample(sample_id)
        added = int(self.files[0].read_text())
        counts = sparse.csr_matrix(sample.counts.toarray() + added)
        return spot_sample(sample_id, counts=counts, notes={"added": added})


@pytest.fixture
def source(tmp_path):
    (tmp_path / "added.txt").write_text("0")
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    return Source(tmp_path)


@pytest.fixture
def without_drawing(monkeypatch):
    """Leaves out what takes most of the time, where samples are prepared many times."""
    monkeypatch.setattr(prepare_module, "draw_spots", lambda *arguments: b"a picture")


def prepare(source, **options):
    options = {"sample_id": "S", "study": "ours", "patches": PATCHES, "thumbnail_size_px": 60, **options}
    return prepare_sample(source, source.folder / "slide.png", source.folder / "T", **options)


def files_of(task):
    return {path.relative_to(task).as_posix() for path in task.rglob("*") if path.is_file()}


def rows(task):
    return (task / "studies.csv").read_text().splitlines()


WHOLE = {"patches/S.h5", "adata/S.h5ad", "prepared/S.json", "prepared/S.png", "studies.csv"}


def test_what_is_written(source):
    prepared = prepare(source)
    task = source.folder / "T"
    assert files_of(task) == WHOLE
    assert (prepared.status, prepared.num_spots, prepared.num_genes) == ("prepared", NUM_SPOTS, 3)
    sample, expected = read_sample(open_task(task), "S"), spot_sample()
    np.testing.assert_array_equal(sample.counts.toarray(), expected.counts.toarray())
    np.testing.assert_array_equal(sample.spatial, expected.spatial)
    assert prepared.num_counts == expected.counts.sum()
    source_patches = PatchH5Source(task / "patches" / "S.h5")
    assert source_patches.resolution_um_per_px == pytest.approx(2.0)
    # 16 µm are 16 px around places in the middle of the pixels' edges
    with Image.open(source.folder / "slide.png") as image:
        expected_patch = image.crop((12, 7, 28, 23)).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(source_patches[11], np.asarray(expected_patch))
    assert source_patches.coords[11].tolist() == [12, 7]
    # the first row of spots reaches beyond the upper edge, and all around it is white
    assert prepared.num_over_edge == 10
    assert (source_patches[3][0] == 255).all()
    with h5py.File(task / "patches" / "S.h5") as file:
        assert dict(file["img"].attrs) == {
            "patch_size_src": 16.0,
            "patch_size_target": 8,
            "downsample": 2.0,
            "pixel_size": 1.0,
        }
    with Image.open(prepared.picture) as picture:
        assert picture.format == "PNG"


def test_what_is_recorded(source):
    import hashlib

    prepared = prepare(source, patient="P")
    record = json.loads(prepared.record.read_text())
    assert record["is_complete"] is True
    assert record["options"] == {
        "patch_size_px": 8, "resolution_um_per_px": 2.0, "slide_resolution_um_per_px": None, "thumbnail_size_px": 60,
        "study": "ours", "patient": "P", "source": "Source", "min_counts": 0,
    }  # fmt: skip
    assert record["sha256"] == {
        name: hashlib.sha256((source.folder / name).read_bytes()).hexdigest()
        for name in ("added.txt", "slide.png")
    }
    assert record["notes"] == {"added": 0}
    assert {"timm-mvhybrid", "anndata", "pillow"} <= set(record["versions"])
    data = anndata.read_h5ad(source.folder / "T" / "adata" / "S.h5ad")
    assert json.loads(data.uns["prepared"])["options"] == record["options"]
    assert str(source.folder) not in prepared.record.read_text() + data.uns["prepared"]


def test_scanpy_draws_a_prepared_sample(source):
    import matplotlib
    import scanpy

    prepare(source)
    data = anndata.read_h5ad(source.folder / "T" / "adata" / "S.h5ad")
    matplotlib.use("Agg")
    with pytest.warns(FutureWarning):
        (axes,) = scanpy.pl.spatial(data, color="A", show=False)
    (image,) = axes.get_images()
    assert image.get_array().shape == (40, 60, 3)
    matplotlib.pyplot.close("all")


def test_a_sample_that_is_done_is_kept(source):
    first = prepare(source)
    task = source.folder / "T"
    before = {name: (task / name).stat().st_mtime_ns for name in files_of(task)}
    again = prepare(source)
    assert again.status == "kept"
    assert {name: (task / name).stat().st_mtime_ns for name in files_of(task)} == before
    same = {
        name: getattr(again, name)
        for name in ("num_spots", "num_counts", "num_over_edge", "notes", "um_per_px")
    }
    assert same == {name: getattr(first, name) for name in same}
    # what somebody removed is made again
    (task / "prepared" / "S.png").unlink()
    assert prepare(source).status == "prepared"
    assert files_of(task) == WHOLE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": PatchOptions(patch_size_px=9, resolution_um_per_px=2.0)}, r"with `patch_size_px=8` instead of 9; .*`overwrite=True`"),
        ({"study": "theirs"}, "with `study='ours'` instead of 'theirs'"),
        ({"slide_resolution_um_per_px": 1.01}, "`slide_resolution_um_per_px=None` instead of 1.01"),
        ({"min_counts": 2}, "`min_counts=0` instead of 2"),
        ({"added": "1"}, r"another added\.txt"),
    ],
)  # fmt: skip
def test_a_sample_that_was_made_otherwise_is_not_replaced_unasked(source, options, message):
    options = dict(options)
    prepare(source)
    task = source.folder / "T"
    before = (task / "patches" / "S.h5").read_bytes()
    if "added" in options:
        (source.folder / "added.txt").write_text(options.pop("added"))
    if "min_counts" in options:
        source = Source(source.folder, options.pop("min_counts"))
    with pytest.raises(DataError, match=message):
        prepare(source, **options)
    assert (task / "patches" / "S.h5").read_bytes() == before
    assert prepare(source, **options, overwrite=True).status == "prepared"
    assert files_of(task) == WHOLE
    assert rows(task) == ["sample_id,study", f"S,{options.get('study', 'ours')}"]


def test_files_of_others_are_not_replaced_unasked(source):
    task = source.folder / "T"
    (task / "patches").mkdir(parents=True)
    (task / "patches" / "S.h5").write_bytes(b"theirs")
    with pytest.raises(DataError, match=r"patches/S\.h5: exists already, and was not written by 'prepare'"):
        prepare(source)
    assert prepare(source, overwrite=True).status == "prepared"
    (task / "prepared" / "S.json").write_text("{")
    with pytest.raises(DataError, match=r"S\.json: not a record of a prepared sample .*; remove it"):
        prepare(source)


def in_child(target, *arguments):
    """Runs a call in another process; the exit code, or minus the signal that ended it."""
    child = get_context("fork").Process(target=target, args=arguments)
    child.start()
    child.join(120)
    return child.exitcode


def killed_at(source, number, options):
    """Prepares, and kills its process in front of the number-th time that a file or folder gets its name."""
    count = 0

    def counting(rename):
        def call(self, target):
            nonlocal count
            # those within a folder that has no name yet are not seen by anyone
            if not self.parent.name.startswith("."):
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
            return rename(self, target)

        return call

    Path.replace, Path.rename = counting(Path.replace), counting(Path.rename)
    prepare(source, **options)
    os._exit(0)


def killed_while_cutting(source):
    prepare(source, on_patches=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))


def check_goes_on(source, options, expected):
    """Checks that what is there is whole, and that the same call makes what an undisturbed one does."""
    task = source.folder / "T"
    for name in files_of(task):
        if name.endswith((".h5", ".h5ad")) and not Path(name).name.startswith("."):
            with h5py.File(task / name) as file:
                assert len(file) > 2
    if (task / "patches" / "S.h5").exists() != (task / "adata" / "S.h5ad").exists():
        # one of two files got its name: said to be missing, never read as it stands
        with pytest.raises(DataError, match="missing, and the sample's other file exists"):
            open_task(task)
    prepared = prepare(source, **options)
    assert files_of(task) == expected
    assert json.loads(prepared.record.read_text())["is_complete"] is True
    sample = read_sample(open_task(task), "S")
    assert sample.counts.sum() == prepared.num_counts == spot_sample().counts.sum()
    assert PatchH5Source(sample.patches).patch_size_px == options.get("patches", PATCHES).patch_size_px
    assert len(PatchH5Source(sample.patches)) == NUM_SPOTS


def test_a_run_that_is_killed_goes_on(source):
    task = source.folder / "T"
    assert in_child(killed_while_cutting, source) == -signal.SIGKILL
    assert not {name for name in files_of(task) if not Path(name).name.startswith(".")}
    assert any(name.endswith(".tmp") for name in files_of(task))
    check_goes_on(source, {}, WHOLE)


@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.usefixtures("without_drawing")
def test_a_run_that_is_killed_between_any_two_files_goes_on(source, is_replaced):
    task = source.folder / "T"
    options = {"patches": PatchOptions(patch_size_px=10, resolution_um_per_px=2.0)} if is_replaced else {}
    splits = {
        "splits/left_out.json",
        *(f"splits/{part}_{number}.csv" for part in ("train", "test") for number in (0, 1)),
    }
    others = {"patches/R.h5", "adata/R.h5ad", "prepared/R.json", "prepared/R.png"}
    ends = []
    for number in range(12):
        shutil.rmtree(task, ignore_errors=True)
        prepare(source, sample_id="R")
        if is_replaced:
            prepare(source)
        ends.append(in_child(killed_at, source, number, {**options, "overwrite": True}))
        if ends[-1] == 0:
            break
        check_goes_on(source, {**options, "overwrite": is_replaced}, WHOLE | others | splits)
        assert prepare(source, **options).status == "kept"
    # the record, patches, counts, the picture, the record again; where it is new also its row, and the splits
    assert ends.count(-signal.SIGKILL) == (5 if is_replaced else 7)
    assert ends[-1] == 0


def prepare_one(source, name):
    prepare(source, sample_id=name, study=f"study {name}", patient=f"P{name}")


@pytest.mark.usefixtures("without_drawing")
def test_processes_add_samples_at_the_same_time(source):
    context = get_context("fork")
    children = [context.Process(target=prepare_one, args=(source, name)) for name in "ABCD"]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 4
    task = source.folder / "T"
    assert rows(task) == ["sample_id,study,patient", *(f"{name},study {name},P{name}" for name in "ABCD")]
    assert [split.test for split in open_task(task).splits] == [(name,) for name in "ABCD"]
    assert not [name for name in files_of(task) if Path(name).name.startswith(".")]


def test_two_processes_do_not_prepare_one_sample(source):
    def try_again(done, total):
        with pytest.raises(OutputError, match=r"S\.json: process \d+ on .* is writing it"):
            prepare(source)

    assert prepare(source, on_patches=try_again).status == "prepared"


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".hidden", "a b", "a,b", "x" * 101, "a\n", "-S", "a\\b", "a*"]
)
def test_names_that_files_cannot_have(source, name):
    with pytest.raises(ParameterError, match=r"`sample_id` is .*; take letters, digits"):
        prepare(source, sample_id=name)
    assert not (source.folder / "T").exists()


def test_samples_that_cannot_be():
    for changed, message in (
        ({"counts": spot_sample().counts.T}, r"counts have the shape \(3, 70\) for 70 spots and 3 genes"),
        ({"counts": spot_sample().counts * 0.5}, "counts must be whole numbers"),
        ({"genes": ("A", "B", "A")}, "gene 'A' occurs more than once"),
        ({"barcodes": ("b",) * NUM_SPOTS}, "barcode 'b' occurs more than once"),
        ({"spatial": np.full((NUM_SPOTS, 2), np.nan)}, "places must be finite"),
        ({"um_per_px": 0.0}, "`um_per_px` must be finite and above 0"),
        ({"columns": {"array_row": np.arange(3)}}, "array_row has 3 values instead of 70"),
        ({"gene_ids": ("E1",)}, "gene_ids has 1 values instead of 3"),
        ({"genes": (), "counts": sparse.csr_matrix((NUM_SPOTS, 0))}, "70 spots and 0 genes"),
    ):
        with pytest.raises(DataError, match=message):
            spot_sample(**changed)
    for values in ({"patch_size_px": 0}, {"resolution_um_per_px": float("nan")}):
        with pytest.raises(ParameterError, match=f"`{next(iter(values))}` must be"):
            PatchOptions(**values)


def test_images_that_do_not_fit(source):
    slide = source.folder / "slide.png"
    with pytest.raises(ParameterError, match="`slide_resolution_um_per_px` must be finite"):
        prepare(source, slide_resolution_um_per_px=-1.0)
    with pytest.raises(
        DataError, match="states no usable resolution; give it with `slide_resolution_um_per_px`"
    ):
        SpotPatches(spot_sample(um_per_px=None), slide, PATCHES)
    assert SpotPatches(spot_sample(um_per_px=None), slide, PATCHES, um_per_px=1.0).um_per_px == 1.0
    with pytest.raises(DataError, match=r"a patch of 0\.5 µm is smaller than a px of 1 µm"):
        SpotPatches(spot_sample(), slide, PatchOptions(patch_size_px=1, resolution_um_per_px=0.5))
    places = spot_sample().spatial.copy()
    places[7] = 120, 3
    with pytest.raises(
        DataError,
        match=r"the spot 'b7' at x=120, y=3 px lies outside the image of 120 × 80 px \(1 of 70 do\)",
    ):
        SpotPatches(spot_sample(spatial=places), slide, PATCHES)
    (source.folder / "slide.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"slide\.png: not a readable image"):
        prepare(source)
    (source.folder / "slide.png").unlink()
    with pytest.raises(DataError, match=r"slide\.png: no such file"):
        prepare(source)
    assert not (source.folder / "T" / "patches").exists()


def test_patches_of_the_slides_own_resolution_are_its_pixels(source):
    cut = SpotPatches(
        spot_sample(um_per_px=1.008),
        source.folder / "slide.png",
        PatchOptions(patch_size_px=8, resolution_um_per_px=1.0),
    )
    pixels = np.asarray(Image.open(source.folder / "slide.png"))
    np.testing.assert_array_equal(np.asarray(cut[12]), pixels[11:19, 26:34])
    assert cut.resolution_um_per_px == 1.008
