"""A phantom on disk: the HEST layout, its marks, and its independence of order and processes."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from timm_mvhybrid.cli import main
from timm_mvhybrid.cohorts.hest_layout import open_task, read_sample
from timm_mvhybrid.data import PatchH5Source, Slide
from timm_mvhybrid.evaluate import EvaluationError
from timm_mvhybrid.synthetic import FACTORS, MARK, PhantomOptions, draw_sample, write_phantom
from timm_mvhybrid.synthetic.sample import draw_study

SMALL = PhantomOptions(num_studies=2, num_samples=2, num_spots=6, num_genes=12, seed=4)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    write_phantom(folder, SMALL)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_layout_is_read_as_hest_s(cohort):
    task = open_task(cohort)
    assert task.samples == ["GEN01-01", "GEN01-02", "GEN02-01", "GEN02-02"]
    drawn = draw_sample(SMALL, 1, 0)
    sample = read_sample(task, "GEN02-01")
    assert sample.generated
    # counts follow the patches' order, whatever the order of the h5ad
    np.testing.assert_array_equal(sample.counts.toarray(), drawn.counts)
    assert list(sample.barcodes) == list(drawn.barcodes)
    source = PatchH5Source(cohort / "PHANTOM/patches/GEN02-01.h5")
    assert source.resolution_um_per_px == pytest.approx(0.5)
    np.testing.assert_array_equal(source[3], drawn.patches[3])


def test_rows_of_patches_and_of_counts_are_in_different_orders(cohort):
    with h5py.File(cohort / "PHANTOM/patches/GEN01-01.h5") as file:
        patches = [name.decode() for name in file["barcode"][:, 0]]
    with h5py.File(cohort / "PHANTOM/adata/GEN01-01.h5ad") as file:
        counts = [name.decode() for name in file["obs"][file["obs"].attrs["_index"]][()]]
    assert counts == sorted(patches)
    assert counts != patches


def test_splits_keep_patients_apart(cohort):
    patients = {row["sample_id"]: row["patient"] for row in rows(cohort / "studies.csv")}
    assert patients == {
        "GEN01-01": "GEN01-P1",
        "GEN01-02": "GEN01-P1",
        "GEN02-01": "GEN02-P1",
        "GEN02-02": "GEN02-P1",
    }
    task = open_task(cohort)
    assert len(task.splits) == 2
    tested = [sample for split in task.splits for sample in split.test]
    assert sorted(tested) == task.samples
    for split in task.splits:
        assert not {patients[name] for name in split.train} & {patients[name] for name in split.test}


def test_everything_says_that_it_is_generated(cohort):
    kinds = set()
    for path in cohort.rglob("*"):
        kinds.add(path.suffix)
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                assert file.attrs["generated"] == MARK
        elif path.suffix == ".h5ad":
            with h5py.File(path) as file:
                assert file["uns/generated"][()].decode() == MARK
        elif path.suffix == ".tif":
            with Image.open(path) as image:
                assert image.tag_v2[270] == MARK
        elif path.suffix == ".png":
            with Image.open(path) as image:
                assert image.text["Comment"] == MARK
        elif path.suffix == ".json":
            assert json.loads(path.read_text())["generated"] == MARK
        elif path.suffix == ".md":
            assert MARK in path.read_text()
        elif path.suffix == ".csv" and path.name != "genes.csv":
            # HEST's columns leave no place for a mark but the names
            assert all(row["sample_id"].startswith("GEN") for row in rows(path))
    assert kinds == {"", ".h5", ".h5ad", ".tif", ".png", ".json", ".md", ".csv"}


def test_patches_are_cut_from_the_slide(cohort):
    with h5py.File(cohort / "PHANTOM/patches/GEN02-02.h5") as file:
        patch, (x, y) = file["img"][2], file["coords"][2]
        side = int(file["img"].attrs["patch_size_src"])
        um_per_px = file["img"].attrs["pixel_size"]
    assert side == round(112 / um_per_px)
    drawn = draw_sample(SMALL, 1, 1)
    assert np.abs(drawn.coords + side / 2 - drawn.centres).max() <= 0.5
    slide = Slide(cohort / "PHANTOM/wsis/GEN02-02.tif")
    assert slide.resolution_um_per_px == pytest.approx(um_per_px, rel=1e-3)
    with Image.open(cohort / "PHANTOM/wsis/GEN02-02.tif") as image:
        cut = (
            image.convert("RGB").crop((x, y, x + side, y + side)).resize((224, 224), Image.Resampling.BICUBIC)
        )
    np.testing.assert_array_equal(np.asarray(cut), patch)


def test_the_truth_is_written_beside_the_data(cohort):
    genes = rows(cohort / "PHANTOM/genes.csv")
    assert [row["band"] for row in genes] == ["low"] * 5 + ["high"] * 5 + ["none"] * 2
    drawn = draw_sample(SMALL, 0, 1)
    with h5py.File(cohort / "PHANTOM/adata/GEN01-02.h5ad") as file:
        stored = np.stack([file[f"obsm/morphology/{name}"][()] for name in FACTORS], axis=1)
    np.testing.assert_array_equal(stored, drawn.morphology[np.argsort(drawn.barcodes)])
    listed = json.loads((cohort / "PHANTOM/var_50genes.json").read_text())["genes"]
    assert listed == [row["gene"] for row in genes]


def test_a_sample_depends_on_seed_and_place_alone():
    first = draw_sample(SMALL, 1, 1)
    again = draw_sample(replace(SMALL, num_studies=9, num_samples=5), 1, 1)
    np.testing.assert_array_equal(first.patches, again.patches)
    np.testing.assert_array_equal(first.counts, again.counts)
    assert first.barcodes == again.barcodes
    for other in (draw_sample(SMALL, 1, 0), draw_sample(replace(SMALL, seed=5), 1, 1)):
        assert other.patches.shape != first.patches.shape or (other.patches != first.patches).mean() > 0.5
        assert (other.counts != first.counts).any()


@pytest.mark.slow
def test_the_files_do_not_depend_on_the_process_that_draws(tmp_path):
    options = replace(SMALL, num_studies=1, num_spots=2)
    cohort = tmp_path / "cohort"
    write_phantom(cohort, options)
    write_phantom(tmp_path / "other", options, num_workers=1)
    names = sorted(str(path.relative_to(cohort)) for path in cohort.rglob("*") if path.is_file())
    assert names == sorted(
        str(path.relative_to(tmp_path / "other"))
        for path in (tmp_path / "other").rglob("*")
        if path.is_file()
    )
    for name in names:
        first, second = cohort / name, tmp_path / "other" / name
        if name.endswith((".h5", ".h5ad")):
            assert contents(first) == contents(second), name
        elif name.endswith(".tif"):
            # libtiff fills the gaps between its parts with what the memory holds
            with Image.open(first) as one, Image.open(second) as other:
                np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
                assert dict(one.tag_v2) == dict(other.tag_v2)
        else:
            assert first.read_bytes() == second.read_bytes(), name


def contents(path: Path) -> dict[str, bytes | str]:
    found = {}

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            # text as such; anndata 0.13 also stores what is absent, as a dataset without a shape
            plain = item.dtype.kind != "O" and item.shape is not None
            found[name] = np.asarray(item[()]).tobytes() if plain else repr(item[()])

    with h5py.File(path) as file:
        file.visititems(add)
    return found


def test_studies_differ_in_stain_focus_and_resolution():
    scanners = [draw_study(SMALL, study).scanner for study in range(12)]
    assert len({scanner.um_per_px for scanner in scanners}) > 8
    assert np.std([scanner.blur_um for scanner in scanners]) > 0.05
    assert np.std([scanner.eosin for scanner in scanners], axis=0).min() > 0.02
    alike = [draw_study(replace(SMALL, image_shift=0), study).scanner for study in range(12)]
    assert len(set(alike)) == 1


def test_neighbours_resemble_each_other():
    samples = [draw_sample(replace(SMALL, num_spots=36), study, 0) for study in range(2)]
    near, far = [], []
    for sample in samples:
        position = sample.centres * sample.scanner.um_per_px
        gap = np.linalg.norm(position[:, None] - position[None], axis=2)
        differ = ((sample.morphology[:, None] - sample.morphology[None]) ** 2).mean(2)
        near.append(differ[(gap > 0) & (gap < 110)].mean())
        far.append(differ[gap > 350].mean())
    assert np.mean(near) < 0.75 * np.mean(far)


def test_other_folders_are_never_replaced(tmp_path, cohort):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(EvaluationError, match=r"mine: exists already; replace it with `overwrite=True`"):
        write_phantom(tmp_path / "mine", SMALL)
    with pytest.raises(EvaluationError, match=r"mine: is not a phantom, so it is not replaced"):
        write_phantom(tmp_path / "mine", SMALL, overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
    with pytest.raises(EvaluationError, match="create it first"):
        write_phantom(tmp_path / "no" / "cohort", SMALL)


def test_an_interrupted_cohort_leaves_nothing(tmp_path):
    def stop(done, total):
        assert (done, total) == (1, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "cohort", SMALL, on_sample=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_and_replaces_a_cohort(tmp_path, capsys):
    command = [
        "phantom",
        str(tmp_path / "out"),
        "--studies",
        "1",
        "--samples",
        "1",
        "--spots",
        "2",
        "--genes",
        "3",
    ]
    for extra in (["--seed", "1"], ["--seed", "2", "--overwrite", "--high-share", "0.2"]):
        assert main([*command, *extra]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["num_samples"], summary["num_spots"], summary["num_genes"]) == (1, 2, 3)
    options = json.loads((tmp_path / "out" / "options.json").read_text())
    assert (options["seed"], options["high_share"], options["num_spots"]) == (2, 0.2, 2)
    # one patient cannot be split
    assert list((tmp_path / "out" / "PHANTOM" / "splits").iterdir()) == []
    assert main([*command, "--seed", "3"]) == 1
    assert re.search(r"error: .*out: exists already", capsys.readouterr().err)
