import json

import pytest

from timm_mvhybrid.finetune.cohort_entry import open_entries
from timm_mvhybrid.runtime.errors import DataError


def manifest(tmp_path, *cohorts):
    (tmp_path / "A").mkdir(exist_ok=True)
    file = tmp_path / "cohorts.json"
    file.write_text(json.dumps({"cohorts": list(cohorts)}))
    return file


def test_folders_and_manifests_join(tmp_path):
    (tmp_path / "B").mkdir()
    entry = {
        "path": "A",
        "weight": 2,
        "panel": "breast",
        "genes": "genes.json",
        "studies": "s.csv",
        "normalise": "cpm",
    }
    first, second = open_entries([manifest(tmp_path, entry), tmp_path / "B"])
    assert (first.path, first.weight, first.panel_name) == (tmp_path / "A", 2, "breast")
    assert (first.genes, first.studies) == (tmp_path / "genes.json", tmp_path / "s.csv")
    assert (second.path, second.weight, second.panel_name, second.genes) == (tmp_path / "B", 1, "B", None)


@pytest.mark.parametrize(
    ("cohort", "message"),
    [
        (3, "cohort 0 must be a path"),
        ({"weight": 1}, "cohort 0 must be a path, or an object with"),
        ({"path": "A", "wight": 1}, "the unknown key 'wight'; known are path, weight"),
        ({"path": "A", "weight": 0}, "`weight` is 0; give a number above 0"),
        ({"path": "A", "weight": True}, "`weight` is True"),
        ({"path": "A", "spot_area_um2": "100"}, "`spot_area_um2` is '100'"),
        ({"path": "A", "platform": "visium"}, "`platform` is 'visium'; choose from auto, spots, transcripts"),
        ({"path": "A", "normalise": "log"}, "`normalise` is 'log'; choose from auto, cpm, area"),
        ({"path": "A", "genes": 0}, "`genes` is 0; give a file, or a number"),
        ({"path": "A", "genes": ["X"]}, "`genes` is .'X'.; give a file"),
        ({"path": "A", "panel": 7}, "'panel' is 7; give text"),
        ({"path": "C"}, "C: no such folder"),
    ],
)
def test_entries_that_cannot_be_used(tmp_path, cohort, message):
    with pytest.raises(DataError, match=message):
        open_entries([manifest(tmp_path, cohort)])


def test_manifests_that_cannot_be_used(tmp_path):
    file = manifest(tmp_path)
    with pytest.raises(DataError, match="at least one cohort"):
        open_entries([file])
    file.write_text("[")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        open_entries([file])
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_entries([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no cohort is given"):
        open_entries([])
    with pytest.raises(DataError, match="occurs more than once; give each once, with the weight"):
        open_entries([tmp_path / "A", manifest(tmp_path, "A")])
