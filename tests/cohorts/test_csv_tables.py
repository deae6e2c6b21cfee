import pytest
from PIL import Image

from timm_mvhybrid.cohorts.csv_tables import read_studies
from timm_mvhybrid.cohorts.labelled_images import open_images
from timm_mvhybrid.data import DataError, read_csv


def test_cells_are_stripped_and_missing_ones_empty(tmp_path):
    file = tmp_path / "t.csv"
    # spreadsheets leave the commas of empty cells out at the end of a row, or add some to every row
    file.write_text("a,b,c\n 1 ,2\n\n3,,,,\n", encoding="utf-8-sig")
    assert read_csv(file, ("a",)) == [{"a": "1", "b": "2", "c": ""}, {"a": "3", "b": "", "c": ""}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2,3\n", "line 2 has more cells than the header"),
        ('a,b\n"1\n1",2\n3,NaN\n', "line 4 has no 'b'"),
        ("a,c\n1,2\n", "lacks the column 'b'; it has a, c"),
        ('a,b\n"1"x,2\n', "cannot be read as a CSV"),
    ],
)
def test_damaged_tables_name_the_line(tmp_path, content, message):
    file = tmp_path / "t.csv"
    file.write_text(content)
    with pytest.raises(DataError, match=rf"t\.csv: {message}"):
        read_csv(file, ("a", "b"))


def test_patients_of_images_may_be_called_groups(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    file = tmp_path / "t.csv"
    file.write_text("path,label,group\na.png,x,p\nb.png,y,q\n")
    assert open_images(file).patients.tolist() == ["p", "q"]
    file.write_text("path,label,group,patient\na.png,x,g,p\nb.png,y,g,q\n")
    assert open_images(file).patients.tolist() == ["p", "q"]


def test_a_group_of_studies_is_not_a_patient(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("sample_id,study,group\na,s,control\nb,t,treated\n")
    assert read_studies(file, ["a", "b"]) == ({"a": "s", "b": "t"}, {})
    file.write_text("sample_id,study,patient\na,s,p\nb,t,\n")
    with pytest.raises(DataError, match="sample 'b' has no patient, others have; fill the column"):
        read_studies(file, ["a", "b"])
