"""Cells from nothing to the page: what they leave, what is done once only, what is refused, and what a kill costs."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
from support.forked import run_module
from support.pretraining import stop_after
from support.studies import EVALUATE, SETTINGS, VARIANTS, numbers, write_study

from timm_mvhybrid.evaluate import Progress
from timm_mvhybrid.report import read_result
from timm_mvhybrid.runtime.atomic_file import claimed
from timm_mvhybrid.runtime.digest import file_sha256
from timm_mvhybrid.study import StudyError, read_record, read_study
from timm_mvhybrid.study.checking import check_study
from timm_mvhybrid.study.page import compare_batches, write_page
from timm_mvhybrid.study.running import run_study
from timm_mvhybrid.training.world import can_shard_on_cpu

pytest.importorskip("lightly")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
needs_cpu_sharding = pytest.mark.skipif(not can_shard_on_cpu(), reason="this torch's FSDP needs a GPU")
CELLS = ("hybrid-seed0", "attention-seed0", "hybrid-seed1", "attention-seed1")


def run(study, **options):
    return run_study(study, show_progress=False, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of two variants and two seeds, run from nothing."""
    path = write_study(tmp_path_factory.mktemp("study"), seeds=[0, 1])
    outcome = run(read_study(path))
    assert outcome.done == CELLS
    assert not outcome.failed
    return path


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished study that a test may change."""
    shutil.copytree(finished.parent, tmp_path / "copy")
    return tmp_path / "copy" / finished.name


def test_a_cell_leaves_run_export_reports_and_its_record(finished):
    folder = finished.parent / "out" / "cells" / CELLS[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        "cell.jsonl",
        "export",
        "reports",
        "result.json",
        "run",
    ]
    record = read_record(folder)
    assert (record.cell, record.variant, record.seed) == (CELLS[0], "hybrid", 0)
    assert record.settings["model"]["name"] == "test_mvhybrid"
    assert (record.num_images, record.num_samples, record.num_starts) == (16, 24, 1)
    assert [step for step, _ in record.seen] == [1, 2, 3, 4]
    assert record.images_per_second > 0
    assert {"pretrain", "export", "evaluate pictures", "other"} == set(record.seconds)
    assert 0 < record.overhead < 1
    assert [step for step, _ in record.curves["loss/total"]] == [1, 2, 3, 4]
    result = record.result("pictures")
    assert result.scores == read_result(folder / "reports" / "pictures").scores
    # one model: baselines were evaluated once, for all cells
    assert len(result.models) == 1
    assert result.models[0].weights_sha256 == file_sha256(folder / "export" / "model.safetensors")


def test_cells_of_a_seed_saw_the_same_and_learned_different_weights(finished):
    records = [read_record(finished.parent / "out" / "cells" / name) for name in CELLS]
    assert records[0].seen == records[1].seen
    assert records[2].seen == records[3].seen
    assert records[0].seen != records[2].seen
    assert len({record.weights_sha256 for record in records}) == 4


def test_the_page_holds_means_over_seeds_and_tests_against_the_first_variant(finished):
    out = finished.parent / "out"
    found = json.loads((out / "study.json").read_text())
    assert found["missing"] == []
    assert [cell["cell"] for cell in found["cells"]] == list(CELLS)
    result = found["results"]["pictures"]
    means = {
        (one["model"], one["metric"]): one["mean"] for one in result["summaries"] if one["model"] in VARIANTS
    }
    for variant in VARIANTS:
        scores = []
        for seed in (0, 1):
            own = read_record(out / "cells" / f"{variant}-seed{seed}").result("pictures")
            scores.append(own.summary(own.models[0].label, "knn", "accuracy").mean)
        assert means[variant, "accuracy"] == pytest.approx(sum(scores) / 2)
    assert {one["baseline"] for one in result["comparisons"]} == {"hybrid"}
    assert {one["num_folds"] for one in result["comparisons"]} == {2}
    intervals = {one["interval"]["over"] for one in result["summaries"] if one["interval"]}
    assert intervals == {"seeds and folds"}
    page = (out / "index.html").read_text()
    for text in ("baseline:colour", "Patch classification", "Images/s", "loss of masked patches", *CELLS):
        assert text in page
    assert str(finished.parent) not in page


def test_a_second_start_trains_nothing_and_writes_the_same_page(copied, monkeypatch):
    def refused(*arguments, **options):
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr("timm_mvhybrid.study.cell_stages.run_training", refused)
    out = copied.parent / "out"
    before = {
        name: (out / name).read_bytes() for name in ("study.json", "index.html", "tables.md", "tables.tex")
    }
    shutil.rmtree(out / "cells" / CELLS[0] / "run")
    (out / "index.html").unlink()
    outcome = run(read_study(copied))
    assert outcome.done == CELLS
    assert {name: (out / name).read_bytes() for name in before} == before


def test_another_definition_is_refused_and_run_anew_where_asked(copied):
    longer = read_study(
        write_study(copied.parent, name=copied.name, seeds=[0, 1], variants={**VARIANTS, "hybrid": {
            **VARIANTS["hybrid"], "optimizer": {"final_weight_decay": 0.3}}})
    )  # fmt: skip
    with pytest.raises(
        StudyError, match=r"hybrid-seed0: was finished before its pretraining changed.*redo=True"
    ):
        run(longer)
    write_page(check_study(longer))
    lacking = "hybrid-seed0 was finished before its pretraining changed; hybrid-seed1 was finished before"
    assert lacking in (longer.output / "tables.md").read_text()
    other = {"pictures": {**EVALUATE["pictures"], "num_folds": 2}}
    with pytest.raises(StudyError, match="before evaluation pictures changed"):
        run(read_study(write_study(copied.parent, name=copied.name, seeds=[0, 1], evaluate=other)))
    before = read_record(longer.cell(CELLS[0]).folder)
    outcome = run(longer, cells=[CELLS[0]], redo=True)
    assert outcome.done == (CELLS[0], CELLS[1], CELLS[3])
    assert read_record(longer.cell(CELLS[0]).folder).definition != before.definition
    kept = read_record(longer.output / "replaced" / f"{CELLS[0]}-0")
    assert kept.definition == before.definition


def test_an_evaluation_that_was_added_is_all_that_is_run(copied, monkeypatch):
    more = {**EVALUATE, "more": {**EVALUATE["pictures"], "num_neighbours": 1, "baselines": "none"}}
    study = read_study(write_study(copied.parent, name=copied.name, seeds=[0, 1], evaluate=more))
    checked = check_study(study)
    assert {checked.state(name) for name in CELLS} == {"begun"}
    monkeypatch.setattr("timm_mvhybrid.study.cell_stages.run_training", None)
    evaluated = []
    kind = type(study.tasks[0].task)
    monkeypatch.setattr(kind, "run", _recording(kind.run, evaluated))
    before = read_record(study.cell(CELLS[0]).folder)
    # what was trained is known without its run
    shutil.rmtree(study.cell(CELLS[0]).config.output)
    outcome = run(study, cells=CELLS[:2])
    assert outcome.done == CELLS
    assert len(evaluated) == 2
    after = read_record(study.cell(CELLS[0]).folder)
    assert (after.seen, after.curves, after.num_starts) == (before.seen, before.curves, 2)
    assert after.results["pictures"] == before.results["pictures"]
    found = json.loads((study.output / "study.json").read_text())
    assert set(found["results"]) == {"pictures", "more"}
    assert "2 of 4 cells are missing: hybrid-seed1 lacks more" in (study.output / "tables.md").read_text()


def _recording(original, calls):
    def recorded(self, options, progress):
        calls.append(options)
        return original(self, options, progress)

    return recorded


def test_different_batches_are_an_error_that_names_the_cells(finished, copied):
    folders = [copied.parent / "out" / "cells" / name for name in CELLS]
    records = [read_record(folder) for folder in folders]
    assert compare_batches(records) == []
    wrong = replace(records[1], seen=(*records[1].seen[:2], (3, 12345), records[1].seen[3]))
    with pytest.raises(StudyError, match=r"cells hybrid-seed0 and attention-seed0 .* at step 3"):
        compare_batches([records[0], wrong, *records[2:]])
    wrong.write(folders[1])
    with pytest.raises(StudyError, match="cannot be compared"):
        write_page(check_study(read_study(copied)))
    (note,) = compare_batches([records[0], replace(records[1], seen=((9, 1),))])
    assert "logged no common step" in note


def test_a_cell_that_fails_leaves_the_others_and_is_named_on_the_page(tmp_path):
    variants = {
        # fits no model, which shows when it is read
        "broken": {"model": {"name": "test_vit12", "weights": "patches.h5"}},
        "attention": VARIANTS["attention"],
    }
    study = read_study(write_study(tmp_path, variants=variants, evaluate={}))
    said = []
    outcome = run(study, say=said.append)
    assert outcome.done == ("attention-seed0",)
    assert list(outcome.failed) == ["broken-seed0"]
    assert "patches.h5" in outcome.failed["broken-seed0"]
    assert any("broken-seed0 failed" in sentence for sentence in said)
    assert "broken-seed0 failed: " in (study.output / "tables.md").read_text()
    assert check_study(study).state("broken-seed0") == "failed"


def test_a_cell_that_another_process_is_at_is_left_to_it(copied):
    study = read_study(copied)
    busy = study.cell(CELLS[3])
    (busy.folder / "result.json").unlink()
    said = []
    with claimed(busy.folder / "result.json"):
        outcome = run(study, say=said.append)
        with pytest.raises(StudyError, match="attention-seed1: another process is at it"):
            run(study, cells=[busy.name])
    assert outcome.skipped == (busy.name,)
    assert outcome.done == CELLS[:3]
    assert "another process is at it" in said[0]
    assert "attention-seed1 is being run" in (study.output / "tables.md").read_text()


def test_a_signal_stops_the_study_with_its_state_saved(tmp_path):
    study = read_study(write_study(tmp_path, evaluate={}))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(2, patch)
        outcome = run(study)
    assert (outcome.stopped_by, outcome.page, outcome.done) == ("SIGTERM", None, ())
    assert check_study(study).state("hybrid-seed0") == "begun"


def test_a_signal_during_an_evaluation_keeps_what_is_done(copied):
    study = read_study(copied)
    cell = study.cell(CELLS[0])
    (cell.folder / "result.json").unlink()
    shutil.rmtree(cell.folder / "reports")

    class Stopping:
        def __enter__(self):
            os.kill(os.getpid(), signal.SIGUSR1)
            return Progress()

        def __exit__(self, *exception):
            return None

    before = signal.getsignal(signal.SIGUSR1)
    outcome = run(study, evaluating=Stopping)
    assert outcome.stopped_by == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) == before
    assert run(study).done == CELLS


def _killed(rank, path):
    """Runs the study until its second cell has saved a checkpoint and gone on, and kills itself there."""
    import timm_mvhybrid.training.run_report as run_report

    original = run_report.RunReport.step

    def step(self, done, *arguments):
        original(self, done, *arguments)
        if done == 3 and "attention" in str(self.config.output):
            os.kill(os.getpid(), signal.SIGKILL)

    run_report.RunReport.step = step
    run(read_study(path))


def test_after_a_kill_the_study_ends_with_the_same_page(finished, tmp_path):
    from support.forked import spawn

    path = write_study(tmp_path, seeds=[0, 1])
    with pytest.raises(Exception, match=r"SIGKILL|signal 9"):
        spawn(_killed, (str(path),), nprocs=1)
    study = read_study(path)
    checked = check_study(study)
    states = {name: checked.state(name) for name in CELLS}
    assert states == {CELLS[0]: "done", CELLS[1]: "begun", CELLS[2]: "open", CELLS[3]: "open"}
    outcome = run(study)
    assert outcome.done == CELLS
    assert numbers(tmp_path / "out") == numbers(finished.parent / "out")
    record = read_record(study.cell(CELLS[1]).folder)
    assert record.num_starts == 2
    log = (study.cell(CELLS[1]).folder / "cell.jsonl").read_text()
    assert '"event": "cut"' in log


@needs_cpu_sharding
def test_two_processes_run_a_study_together(finished, tmp_path):
    path = write_study(tmp_path)
    code, output, errors = run_module("timm_mvhybrid", ["study", "run", path, "--cell", CELLS[0]], ranks=2)
    assert code == 0, errors
    assert json.loads(output)["done"] == [CELLS[0]]
    ours, theirs = (
        read_record(parent / "out" / "cells" / CELLS[0]) for parent in (tmp_path, finished.parent)
    )
    assert ours.seen == theirs.seen
    assert ours.definition == theirs.definition
    assert len(ours.seen) == SETTINGS["num_steps"]
    assert ours.results.keys() == {"pictures"}


def test_tasks_on_slides_take_bags_that_each_cell_embeds(copied, monkeypatch):
    monkeypatch.setattr("timm_mvhybrid.study.cell_stages.run_training", None)
    rows = ["slide_id,patient,label"]
    for number in range(8):
        kind = "ab"[number % 2]
        folder = copied.parent / "slides" / f"s{number}"
        folder.mkdir(parents=True)
        for picture in range(2):
            shutil.copy(copied.parent / "pictures" / kind / f"{picture + number // 2}.png", folder)
        rows.append(f"s{number},p{number},{kind}")
    (copied.parent / "labels.csv").write_text("\n".join(rows) + "\n")
    options = {"patches": "slides", "labels": "labels.csv", "num_folds": 2, "num_epochs": 1, "hidden_dim": 4}
    evaluate = {**EVALUATE, "slides": options}
    study = read_study(write_study(copied.parent, name=copied.name, seeds=[0, 1], evaluate=evaluate))
    assert run(study, cells=CELLS[:2]).done == CELLS
    for name in CELLS[:2]:
        cell = study.cell(name)
        bags = cell.folder / "bags" / "slides" / cell.variant
        assert sorted(path.name for path in bags.iterdir()) == [f"s{number}.h5" for number in range(8)]
        result = read_record(cell.folder).result("slides")
        assert [model.label for model in result.models] == [cell.variant]
    found = json.loads((study.output / "study.json").read_text())
    assert {one["model"] for one in found["results"]["slides"]["summaries"]} == set(VARIANTS)
