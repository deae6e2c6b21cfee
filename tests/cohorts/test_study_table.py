"""studies.csv grows with the samples, and splits follow from it: studies, or else patients, or else samples."""

import json

import pytest

from timm_mvhybrid.cohorts import write_splits
from timm_mvhybrid.cohorts.hest_layout import open_task
from timm_mvhybrid.cohorts.study_table import add_sample, check_row
from timm_mvhybrid.data import DataError
from timm_mvhybrid.runtime.errors import ParameterError


@pytest.fixture
def task(tmp_path):
    for folder in ("patches", "adata"):
        (tmp_path / folder).mkdir()
    return tmp_path


def add(task, name, study, patient=None, **options):
    (task / "patches" / f"{name}.h5").touch()
    (task / "adata" / f"{name}.h5ad").touch()
    return add_sample(task, name, study, patient, **options)


def left_out(task):
    return [split.test for split in open_task(task).splits]


def test_studies_are_left_out_or_else_patients_or_else_samples(task):
    assert add(task, "A1", "x", "A").problem == "one sample, and a split leaves one out"
    assert not (task / "splits").exists()
    assert add(task, "A2", "x", "A").left_out == "sample"
    assert left_out(task) == [("A1",), ("A2",)]
    found = add(task, "B1", "x", "B")
    assert (found.left_out, found.groups) == ("patient", ("A", "B"))
    assert left_out(task) == [("A1", "A2"), ("B1",)]
    add(task, "C1", "y", "C")
    assert left_out(task) == [("A1", "A2", "B1"), ("C1",)]
    assert open_task(task).splits[1].train == ("A1", "A2", "B1")
    assert json.loads((task / "splits" / "left_out.json").read_text()) == {
        "left_out": "study",
        "groups": {"0": "x", "1": "y"},
    }
    # splits of three patients, and then of two studies: none of the earlier ones stays
    assert write_splits(task, "patient").groups == ("A", "B", "C")
    assert len(left_out(task)) == 3
    assert len(write_splits(task).groups) == len(left_out(task)) == 2
    assert not [path for path in task.rglob("*") if path.name.startswith(".")]


def test_the_table_keeps_what_others_wrote_into_it(task):
    (task / "studies.csv").write_text("sample_id,organ,study\nZ,lung,x\n")
    add(task, "A", "a, b")
    assert (task / "studies.csv").read_text().splitlines() == [
        "sample_id,organ,study",
        'A,,"a, b"',
        "Z,lung,x",
    ]
    # Z has no files, so that it is in no split
    assert not (task / "splits").exists()
    add(task, "Z", "x")
    assert (task / "studies.csv").read_text().splitlines()[2] == "Z,lung,x"
    assert left_out(task) == [("A",), ("Z",)]


def test_splits_of_others_stay(task):
    add(task, "A", "x")
    (task / "splits").mkdir()
    (task / "splits" / "test_0.csv").write_text("theirs")
    assert "was not written here" in add(task, "B", "y").problem
    assert (task / "splits" / "test_0.csv").read_text() == "theirs"


def test_no_splits_where_what_they_leave_out_is_unknown(task):
    add(task, "A", "x")
    found = add(task, "B", "x", leave_out="patient")
    assert (found.left_out, found.problem) == ("", "no patient known, and a split leaves one out")
    assert left_out(task) == []
    with pytest.raises(
        ParameterError, match="`leave_out` is 'spot'; choose from auto, study, patient, sample"
    ):
        write_splits(task, "spot")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("N", "", "A"), "`study` is ''; give it a name"),
        (("N", "nan", "A"), "`study` is 'nan'"),
        (("N", "x", "a\nb"), "`patient` is"),
        (("N", "x", None), r"`patient` is missing: .*studies\.csv names that of sample 'A1'"),
        (
            ("N", "y", "A"),
            "patient 'A' has the sample 'A1' in the study 'x', so leaving a study out would leak",
        ),
    ],
)
def test_rows_that_do_not_fit(task, row, message):
    add(task, "A1", "x", "A")
    with pytest.raises((ParameterError, DataError), match=message):
        check_row(task, *row)


def test_a_patient_that_no_other_sample_has(task):
    add(task, "A1", "x")
    with pytest.raises(ParameterError, match=r"`patient` is 'B', and .* names none of the other samples"):
        check_row(task, "B1", "x", "B")
    check_row(task, "A1", "x", "B")
    (task / "studies.csv").write_text("sample_id,study\nA,x\nA,y\n")
    with pytest.raises(DataError, match="sample 'A' occurs more than once"):
        check_row(task, "B1", "x", None)
