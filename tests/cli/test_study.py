"""The command line of studies, in this process."""

import json

import pytest
from support.studies import write_study

from timm_mvhybrid.cli import main
from timm_mvhybrid.study import ready_studies

pytest.importorskip("lightly")
pytest.importorskip("yaml")


@pytest.fixture
def study(capsys):
    def study(*arguments):
        try:
            code = main(["study", *map(str, arguments)])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return study


def test_a_dry_run_says_what_each_cell_takes_and_writes_nothing(tmp_path, study):
    path = write_study(tmp_path, seeds=[0, 1], variants={"only": {}})
    before = sorted(tmp_path.rglob("*"))
    code, output, _ = study("run", path, "--dry-run")
    assert code == 0
    found = json.loads(output)
    first, second = found["cells"]
    assert (first["cell"], first["state"], first["num_steps"], first["num_images"]) == (
        "only-seed0",
        "open",
        4,
        16,
    )
    assert first["basis"] == "steps timed here"
    assert first["pretrain_seconds"] > 0
    # 18 pictures, by the time of a forward pass
    assert first["embed_seconds"] > 0
    # measured once for both
    assert second["pretrain_seconds"] == first["pretrain_seconds"]
    assert found["seconds"] == pytest.approx(2 * (first["pretrain_seconds"] + first["embed_seconds"]))
    assert found["disk_gib"] > 0
    assert any("probes" in sentence for sentence in found["not_included"])
    assert sorted(tmp_path.rglob("*")) == before


def test_cells_are_run_by_number_and_by_name_and_the_rest_is_estimated_from_them(
    tmp_path, study, monkeypatch
):
    path = write_study(tmp_path, seeds=[0, 1])
    code, output, errors = study("run", path, "--cell-index", 1)
    assert (code, errors) == (0, "")
    found = json.loads(output)
    assert found["done"] == ["attention-seed0"]
    assert found["page"] == str(tmp_path.resolve() / "out" / "index.html")
    assert {"training", "evaluation", "export", "other"} == set(found["seconds"])
    assert "3 of 4 cells are missing" in (tmp_path / "out" / "tables.md").read_text()
    code, output, _ = study("status", path)
    states = json.loads(output)
    assert states == {
        "hybrid-seed0": "open",
        "attention-seed0": "done",
        "hybrid-seed1": "open",
        "attention-seed1": "open",
    }
    monkeypatch.setattr("timm_mvhybrid.study.estimate.time_steps", lambda config: 100.0)
    found = json.loads(study("run", path, "--dry-run")[1])
    bases = {one["cell"]: one["basis"] for one in found["cells"]}
    assert bases["attention-seed0"] == "this cell"
    assert bases["attention-seed1"] == "cell attention-seed0"
    assert bases["hybrid-seed1"] == "steps timed here"
    left = [one for one in found["cells"] if one["state"] != "done"]
    assert found["seconds"] == pytest.approx(
        sum(one["pretrain_seconds"] + one["embed_seconds"] for one in left)
    )
    assert sum(one["pretrain_seconds"] for one in left if one["cell"].startswith("hybrid")) == 800
    log = [json.loads(line) for line in (tmp_path / "out" / "study.jsonl").read_text().splitlines()]
    assert [line["event"] for line in log] == ["start", "cell", "end"]
    assert study("page", path)[0] == 0


def test_ready_studies_are_listed_and_printed(study):
    code, output, _ = study("show")
    assert (code, json.loads(output)) == (0, ready_studies())
    code, output, _ = study("show", "splits")
    assert code == 0
    assert output.startswith("# How many of the 24 blocks")
    code, _, errors = study("show", "nothing")
    assert (code, "there are channel-mixers" in errors) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--cell-index", "4"], "it must be from 0 to 1", 2),
        (["--cell", "none"], "has no cell 'none'; there are hybrid-seed0", 1),
        (["--evaluate", "pictures"], "must be NAME=VALUE", 2),
        (["--set", "pretrain.num_step=3"], "did you mean num_steps", 1),
        (["--set", "seeds=["], "is not YAML", 1),
        (["--set", "nonsense=3"], "no key 'nonsense'", 1),
        (["--sources", "absent.h5"], "absent.h5", 1),
        (["--evaluate", "pictures=absent"], "absent, which root names", 1),
        (["--nonsense"], "--nonsense", 2),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(tmp_path, study, arguments, message, code):
    path = write_study(tmp_path)
    found, output, errors = study("run", path, *arguments)
    assert found == code
    assert message in errors
    assert output == ""
    assert not (tmp_path / "out").exists()


def test_a_page_needs_a_finished_cell(tmp_path, study):
    code, _, errors = study("page", write_study(tmp_path))
    assert code == 1
    assert "no cell is finished yet" in errors
