import numpy as np
import pytest

from timm_mvhybrid.cohorts import read_transcripts, transcripts
from timm_mvhybrid.runtime.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

FEATURES = [
    "EPCAM",
    "NegControlProbe_1",
    "BLANK_3",
    "ACTA2",
    "UnassignedCodeword_7",
    "antisense_X",
    "EPCAM",
    "CD4",
]
QV = [40.0, 40, 40, 20, 40, 40, 19.5, 30]


def write(tmp_path, features=FEATURES, kind=None, **columns):
    table = {
        "x_location": np.arange(len(features)) / 2,
        "he_x": np.arange(len(features), dtype=float),
        "he_y": np.arange(len(features), dtype=np.float32) * 2,
        "feature_name": pyarrow.array(features, kind),
        "qv": np.array(QV[: len(features)], np.float32),
        **columns,
    }
    file = tmp_path / "transcripts.parquet"
    parquet.write_table(
        pyarrow.table({name: values for name, values in table.items() if values is not None}), file
    )
    return file


@pytest.mark.parametrize("kind", ["string", "binary", "large_string", "dictionary"])
def test_controls_and_low_quality_are_left_out_and_counted(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(transcripts, "_BATCH_ROWS", 3)
    types = {
        "string": pyarrow.string(),
        "binary": pyarrow.binary(),
        "large_string": pyarrow.large_string(),
        "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    }
    features = [name.encode() for name in FEATURES] if kind == "binary" else FEATURES
    found = read_transcripts(write(tmp_path, features, types[kind]))
    assert found.genes == ("ACTA2", "CD4", "EPCAM")
    assert [found.genes[index] for index in found.gene] == ["EPCAM", "ACTA2", "CD4"]
    assert found.x_px.tolist() == [0, 3, 7]
    assert found.y_px.tolist() == [0, 6, 14]
    assert found.left_out.num_controls == {"negcontrol": 1, "blank": 1, "unassigned": 1, "antisense": 1}
    assert (
        found.left_out.num_low_quality,
        found.left_out.num_other_genes,
        found.left_out.num_without_place,
    ) == (1, 0, 0)


def test_asked_for_genes_keep_their_order(tmp_path):
    found = read_transcripts(write(tmp_path), genes=["NONE", "EPCAM"], min_qv=0)
    assert found.genes == ("NONE", "EPCAM")
    assert found.gene.tolist() == [1, 1]
    assert found.left_out.num_other_genes == 2
    assert found.left_out.num_low_quality == 0


def test_transcripts_without_a_place_are_counted(tmp_path):
    places = np.arange(8.0)
    places[0] = np.nan
    found = read_transcripts(write(tmp_path, he_y=places))
    assert found.left_out.num_without_place == 1
    assert len(found) == 2


def test_tables_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"lacks the column 'he_x'; it has x_location, .*do not replace them"):
        read_transcripts(write(tmp_path, he_x=None))
    with pytest.raises(DataError, match="1 transcripts have no feature_name"):
        read_transcripts(write(tmp_path, [*FEATURES[:-1], None]))
    with pytest.raises(
        DataError, match=r"no transcript counts .0 below quality 20, 4 of controls, 4 of other genes"
    ):
        read_transcripts(write(tmp_path), genes=["NONE"])
    with pytest.raises(DataError, match="he_x or he_y is infinite"):
        read_transcripts(write(tmp_path, he_x=np.full(8, np.inf)))
    (tmp_path / "no.parquet").write_text("no")
    with pytest.raises(DataError, match=r"no\.parquet: cannot be read as a parquet file"):
        read_transcripts(tmp_path / "no.parquet")
    with pytest.raises(DataError, match=r"absent\.parquet: no such file"):
        read_transcripts(tmp_path / "absent.parquet")
