import pandas as pd
import pytest
from support.hest_downloads import COUNTS, FACTS, PLACES, write_download

from timm_mvhybrid.cohorts.hest_sample import HestFolder
from timm_mvhybrid.cohorts.prepare import prepare_sample
from timm_mvhybrid.cohorts.spot_sample import PatchOptions
from timm_mvhybrid.runtime.errors import DataError, ParameterError

PATCHES = PatchOptions(patch_size_px=32, resolution_um_per_px=0.5)


def make(tmp_path, **options):
    return HestFolder(folder=write_download(tmp_path, **options), sample="TENX1")


@pytest.mark.parametrize(
    "in_tissue", [(1, 1, 1, 0), (True, True, True, False), (1.0, 1.0, 1.0, 0.0), list("1110")]
)
def test_a_sample_becomes_a_task(tmp_path, in_tissue):
    source = make(tmp_path, in_tissue=in_tissue)
    assert (source.study, source.patient) == ("Breast, two views", "Breast, two views: Patient 1")
    sample = source.read("S", PATCHES)
    assert sample.barcodes == ("AA-1", "AC-1", "AG-1")
    assert sample.genes == ("EPCAM", "CD4", "MS4A1")
    assert sample.counts.toarray().tolist() == COUNTS[:3].tolist()
    assert sample.spatial.tolist() == PLACES[:3].tolist()
    assert (sample.um_per_px, sample.spot_shape, sample.spot_size_um) == (0.5, "circle", 55.0)
    assert sample.notes == {
        "platform": "HEST Visium",
        "st_technology": "Visium",
        "species": "Homo sapiens",
        "pixel_size_um_estimated": 0.5,
        "pixel_size_um_embedded": 0.3528,
        "embedded_size_contradicts": True,
        "num_not_in_tissue": 1,
    }
    prepared = prepare_sample(
        source,
        source.slide,
        tmp_path / "T",
        sample_id="S",
        study=source.study,
        patient=source.patient,
        patches=PATCHES,
    )
    assert (prepared.num_spots, prepared.num_counts, prepared.um_per_px) == (3, 10.0, 0.5)
    table = (tmp_path / "T" / "studies.csv").read_text()
    assert '"Breast, two views","Breast, two views: Patient 1"' in table


def test_estimated_size_against_what_the_image_states(tmp_path):
    source = make(tmp_path, slide_um_per_px=0.6)
    with pytest.raises(
        DataError,
        match=r"TENX1\.tif: states 0\.6 µm/px, and of sample 'S' by pixel_size_um_estimated in .*TENX1\.json a px is 0\.5 µm, 17% apart",
    ):
        prepare_sample(source, source.slide, tmp_path / "T", sample_id="S", study="A", patches=PATCHES)


def test_facts_from_the_table_of_all_samples(tmp_path):
    source = make(tmp_path, facts=None)
    assert source.metadata is None
    assert (source.study, source.patient, source.read("S", PATCHES).um_per_px) == (None, None, None)
    for version, size in (("v1_0_0", 0.9), ("v1_1_0", 0.5)):
        facts = {**FACTS, "pixel_size_um_estimated": size, "patient": ""}
        pd.DataFrame([{**facts, "id": "X"}, facts]).to_csv(tmp_path / f"HEST_{version}.csv", index=False)
    source = HestFolder(folder=tmp_path, sample="TENX1")
    assert (source.study, source.patient) == ("Breast, two views", None)
    assert source.read("S", PATCHES).um_per_px == 0.5
    assert source.metadata.name == "HEST_v1_1_0.csv"
    pd.DataFrame([{**FACTS, "id": "X"}]).to_csv(tmp_path / "HEST_v2_0_0.csv", index=False)
    with pytest.raises(DataError, match=r"HEST_v2_0_0\.csv: lacks the sample 'TENX1'"):
        HestFolder(folder=tmp_path, sample="TENX1").read("S", PATCHES)


def test_pseudo_spots_are_squares(tmp_path):
    sample = make(tmp_path, facts={**FACTS, "st_technology": "Visium HD", "spot_diameter": 2.0}).read(
        "S", PATCHES
    )
    assert (sample.spot_shape, sample.spot_size_um) == ("square", None)
    assert make(tmp_path, in_tissue=None).read("S", PATCHES).notes["num_not_in_tissue"] == 0


def test_what_cannot_be_used(tmp_path):
    source = make(tmp_path, facts={**FACTS, "pixel_size_um_estimated": "half"})
    with pytest.raises(
        DataError, match=r"TENX1\.json: 'pixel_size_um_estimated' is 'half'; it must be a length in µm"
    ):
        source.read("S", PATCHES)
    with pytest.raises(DataError, match=r"in_tissue'\] holds '2'; it must be 0 or 1"):
        make(tmp_path, in_tissue=(1, 1, 2, 0)).read("S", PATCHES)
    with pytest.raises(DataError, match=r"in_tissue'\] is 0 for every spot"):
        make(tmp_path, in_tissue=(0, 0, 0, 0)).read("S", PATCHES)
    with pytest.raises(DataError, match=r"TENX1\.h5ad: has no obsm\['spatial'\], centres .* TENX1\.tif"):
        make(tmp_path, spatial=None).read("S", PATCHES)
    with pytest.raises(DataError, match=r"0\.5 in X, which is not a count"):
        make(tmp_path, counts=COUNTS / 2).read("S", PATCHES)
    (tmp_path / "metadata" / "TENX1.json").write_text("[]")
    with pytest.raises(DataError, match=r"TENX1\.json: must hold an object"):
        HestFolder(folder=tmp_path, sample="TENX1").facts  # noqa: B018
    (tmp_path / "metadata" / "TENX1.json").write_text("{")
    with pytest.raises(DataError, match=r"TENX1\.json: cannot be read as JSON"):
        HestFolder(folder=tmp_path, sample="TENX1").facts  # noqa: B018
    with pytest.raises(DataError, match=r"st/TENX2\.h5ad: missing, and .*st has TENX1; give"):
        HestFolder(folder=tmp_path, sample="TENX2").files  # noqa: B018
    (tmp_path / "wsis" / "TENX1.tif").unlink()
    with pytest.raises(DataError, match=r"wsis/TENX1\.tif: missing, and .*wsis has none"):
        HestFolder(folder=tmp_path, sample="TENX1").files  # noqa: B018
    with pytest.raises(DataError, match="no such folder; give the one that holds wsis/"):
        HestFolder(folder=tmp_path / "no", sample="TENX1").files  # noqa: B018
    with pytest.raises(ParameterError, match="files are called by it"):
        HestFolder(folder=tmp_path, sample="../TENX1")
