"""``timm-mvhybrid prepare`` of Xenium, of HEST's samples and of SpatialData stores: what reaches the library, and what is said."""

import json

import numpy as np
import pytest
from support.generated_slides import write_slide
from support.hest_downloads import FACTS, write_download
from support.xenium_bundles import SIZE_PX, scattered, turned, um_per_px, write_bundle, write_matrix

from timm_mvhybrid.cli import main
from timm_mvhybrid.cohorts.counts import read_counts
from timm_mvhybrid.cohorts.csv_tables import read_studies

UM_PER_PX = um_per_px(turned())
XENIUM = (
    "prepare xenium outs --slide he.tif --output T --sample S --study A --patch-size 16 --resolution".split()
)
XENIUM.append(f"{2 * UM_PER_PX}")
HEST = "prepare hest . --output T --sample TENX1 --patch-size 32".split()
STORE = "prepare spatialdata s.zarr --output T --sample S --study A --patch-size 32".split()


@pytest.fixture
def xenium(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path / "he.tif", um_per_px=UM_PER_PX, size=SIZE_PX, tissue=None, num_levels=1)
    write_bundle(tmp_path / "outs", *scattered(), turned())
    write_matrix(tmp_path / "matrix.csv", turned())
    return tmp_path


def prepared(capsys, *arguments):
    assert main([*arguments]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def failed(capsys, *arguments):
    assert main([*arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_xenium(xenium, capsys):
    options = ["--alignment", "matrix.csv", "--min-transcripts", "3", "--min-qv", "30", "--transcripts"]
    facts, said = prepared(capsys, *XENIUM, *options)
    assert (facts["status"], facts["um_per_px"], said) == ("prepared", pytest.approx(UM_PER_PX), "")
    assert facts["notes"]["min_qv"] == 30
    assert facts["notes"]["left_out"]["num_low_quality"] > 0
    assert facts["transcripts"] == "T/transcripts/S.parquet"
    assert facts["num_transcripts"] == facts["notes"]["num_transcripts"]
    again, said = prepared(capsys, *XENIUM, *options)
    assert again["status"] == "kept"
    assert "S: kept" in said
    # what a killed run did not write is written, and nothing else
    (xenium / "T" / "transcripts" / "S.parquet").unlink()
    assert prepared(capsys, *XENIUM, *options)[0]["num_transcripts"] == facts["num_transcripts"]
    problem = failed(capsys, *XENIUM, "--alignment", "matrix.csv")
    assert "--min-qv 30.0 instead of 20.0" in problem.replace("`", "")


def test_xenium_without_the_place_of_the_image(xenium, capsys):
    problem = failed(capsys, *XENIUM)
    assert problem.startswith(
        "he.tif: where it lies on the morphology image is unknown, because there is no file"
    )
    assert "by --alignment, or --aligned if" in problem
    assert not (xenium / "T" / "patches").exists()
    assert "outside of he.tif (600 × 400 px)" in failed(capsys, *XENIUM, "--aligned")


def test_xenium_whose_image_states_another_size(xenium, capsys):
    write_slide(xenium / "he.tif", um_per_px=0.2125, size=SIZE_PX, tissue=None, num_levels=1)
    problem = failed(capsys, *XENIUM, "--alignment", "matrix.csv")
    assert "states 0.2125 µm/px" in problem
    settled = f"{UM_PER_PX:.4g}"
    assert f"--slide-resolution {settled}" in problem
    facts, _ = prepared(capsys, *XENIUM, "--alignment", "matrix.csv", "--slide-resolution", settled)
    assert (facts["um_per_px"], facts["stated_um_per_px"]) == (float(settled), pytest.approx(0.2125))


def test_hest_takes_study_and_patient_from_the_metadata(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(write_download(tmp_path))
    facts, _ = prepared(capsys, *HEST)
    assert (facts["num_spots"], facts["um_per_px"]) == (3, 0.5)
    assert read_studies("T/studies.csv", ["TENX1"]) == (
        {"TENX1": "Breast, two views"},
        {"TENX1": "Breast, two views: Patient 1"},
    )
    facts, _ = prepared(capsys, *HEST, "--study", "mine", "--patient", "me", "--output", "U")
    assert read_studies("U/studies.csv", ["TENX1"]) == ({"TENX1": "mine"}, {"TENX1": "me"})
    prepared(capsys, *HEST, "--without-patient", "--output", "V")
    assert read_studies("V/studies.csv", ["TENX1"])[1] == {}
    assert "contradict" in failed(capsys, *HEST, "--without-patient", "--patient", "me")
    write_download(tmp_path, facts={**FACTS, "dataset_title": None})
    problem = failed(capsys, *HEST, "--output", "W")
    assert problem.startswith("--study is missing, and metadata/TENX1.json does not state the title")
    assert "st/TENX2.h5ad: missing, and st has TENX1" in failed(
        capsys, *HEST, "--sample", "TENX2", "--study", "A"
    )


def test_store_with_and_without_a_slide(tmp_path, monkeypatch, capsys):
    pytest.importorskip("spatialdata")
    from support.spatialdata_stores import COUNTS, PLACES, write_store

    monkeypatch.chdir(tmp_path)
    write_store(tmp_path / "s.zarr")
    assert "give it with --slide-resolution" in failed(capsys, *STORE)
    facts, said = prepared(capsys, *STORE, "--pitch-um", "100")
    assert (facts["num_spots"], facts["um_per_px"], said) == (5, pytest.approx(0.5), "")
    counts = read_counts("T/adata/S.h5ad")
    assert counts.values.toarray().tolist() == COUNTS.tolist()
    np.testing.assert_allclose(counts.spatial, PLACES, rtol=0, atol=1e-6)
    assert (tmp_path / "T" / "wsis" / "S.tif").is_file()
    assert prepared(capsys, *STORE, "--pitch-um", "100")[0]["status"] == "kept"
    options = ["--slide", "T/wsis/S.tif", "--image", "he", "--slide-resolution", "0.5", "--output", "U"]
    assert prepared(capsys, *STORE, *options)[0]["um_per_px"] == 0.5
    write_store(tmp_path / "two.zarr", regions=("one", "two"))
    before = (tmp_path / "T" / "wsis" / "S.tif").read_bytes()
    problem = failed(capsys, *STORE[:2], "two.zarr", *STORE[3:])
    assert problem.startswith("T/wsis/S.tif: exists already, and is not image 'he' of two.zarr")
    assert (tmp_path / "T" / "wsis" / "S.tif").read_bytes() == before
    assert "choose one by --region" in failed(capsys, *STORE[:2], "two.zarr", *STORE[3:], "--sample", "R")


def test_store_without_the_package(tmp_path, monkeypatch, capsys):
    import importlib

    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.zarr" / "images" / "he").mkdir(parents=True)
    (tmp_path / "s.zarr" / "tables" / "table").mkdir(parents=True)
    real = importlib.import_module

    def missing(name, *rest):
        if name.startswith("spatialdata"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert failed(capsys, *STORE) == "spatialdata is not installed; pip install 'timm-mvhybrid[spatialdata]'"
