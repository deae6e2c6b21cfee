"""Slides → a folder: the same features as one by one, what a second run does, and what fails."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import tifffile
import torch
from support.dicom_slides import write_dicom_slide
from support.generated_patches import clam_attributes, write_coordinates
from support.generated_slides import slide_pixels, write_slide
from support.slide_folders import TILING, assert_same, file_digests, write_slides

from timm_mvhybrid.data import TilingOptions, list_slides, open_source
from timm_mvhybrid.embed import cohort_work
from timm_mvhybrid.embed.cohort_plan import PlannedSlide
from timm_mvhybrid.embed.cohort_run import CohortOptions, embed_slides
from timm_mvhybrid.embed.cohort_work import CohortWork, own_first
from timm_mvhybrid.embed.embeddings import ForwardOptions
from timm_mvhybrid.embed.engine_calls import EngineCalls
from timm_mvhybrid.embed.slide_cohort import read_records
from timm_mvhybrid.evaluate import embed, load_backbone
from timm_mvhybrid.runtime.atomic_file import claimed
from timm_mvhybrid.runtime.errors import EvaluationError, OutputError, ParameterError
from timm_mvhybrid.runtime.ranks import Ranks


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("test_vit12")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return write_slides(tmp_path_factory.mktemp("slides"))


def run(backbone, inputs, output, *, num_workers=0, tiling=None, **options):
    inputs = [inputs] if isinstance(inputs, Path) else inputs
    return embed_slides(
        list_slides(inputs),
        backbone,
        output,
        tiling=TilingOptions(**{**TILING, **(tiling or {})}),
        forward=ForwardOptions(batch_size=5, device="cpu", num_workers=num_workers),
        **options,
    )


@pytest.fixture(scope="module")
def expected(backbone, slides, tmp_path_factory):
    """What one process makes of the slides."""
    output = tmp_path_factory.mktemp("expected")
    run(backbone, slides, output)
    return output


def attempts(output):
    return {name: record.attempts for name, record in read_records(output).items()}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_features_are_those_of_each_slide_alone(backbone, slides, expected, tmp_path, num_workers):
    output = tmp_path / "out"
    summary = run(backbone, slides, output, num_workers=num_workers)
    assert (summary.num_embedded, summary.num_patches, summary.failed) == (4, 32 + 24 + 16 + 6, ())
    for name in "abcd":
        source = open_source(slides / f"{name}.tif", tiling=TilingOptions(**TILING))
        embed(source, backbone, tmp_path / f"{name}.h5", device="cpu", batch_size=5)
        assert_same(output / f"{name}.h5", tmp_path / f"{name}.h5")
    assert file_digests(output) == file_digests(expected)
    records = read_records(output)
    assert {name: record.digests["file"] for name, record in records.items()} == file_digests(output)
    assert {name: record.tiles for name, record in records.items()} == {"a": 32, "b": 24, "c": 16, "d": 6}
    assert all(record.path == str(slides / f"{name}.tif") for name, record in records.items())
    assert sorted(os.listdir(output)) == ["a.h5", "b.h5", "c.h5", "cohort.jsonl", "d.h5"]


def test_several_devices_make_the_same_files(backbone, slides, expected, tmp_path, monkeypatch):
    place = CohortWork.models
    monkeypatch.setattr(CohortWork, "models", lambda *given: [*place(*given), *place(*given)])
    assert run(backbone, slides, tmp_path / "out").num_embedded == 4
    assert file_digests(tmp_path / "out") == file_digests(expected)


def test_a_second_run_does_nothing(backbone, slides, tmp_path, monkeypatch):
    run(backbone, slides, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(cohort_work, "PatchReaders", None)
    summary = run(backbone, slides, tmp_path / "out")
    assert (summary.num_embedded, summary.num_kept) == (0, 4)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_second_run_does_what_is_missing_or_changed(backbone, tmp_path):
    slides, output = write_slides(tmp_path / "in", "abcd"), tmp_path / "out"
    run(backbone, slides, output)
    (output / "a.h5").unlink()
    # b is another slide, c the same with another time
    write_slide(slides / "b.tif", tissue=(256, 256, 384, 384))
    os.utime(slides / "c.tif", (1, 1))
    summary = run(backbone, slides, output)
    assert (summary.num_embedded, summary.num_kept) == (2, 2)
    assert attempts(output) == {"a": 2, "b": 2, "c": 1, "d": 1}
    assert read_records(output)["b"].tiles == 4
    assert run(backbone, slides, output).num_kept == 4


def test_the_folder_is_not_listed_for_each_slide(backbone, slides, tmp_path, monkeypatch):
    def listings(name, inputs):
        listed = []
        for function in ("scandir", "listdir"):
            real = getattr(os, function)
            monkeypatch.setattr(
                os, function, lambda path=".", real=real: (listed.append(os.fspath(path)), real(path))[1]
            )
        run(backbone, inputs, tmp_path / name)
        monkeypatch.undo()
        return listed.count(str(tmp_path / name))

    assert listings("four", slides) == listings("one", slides / "a.tif") <= 2


def test_what_a_killed_process_left_of_a_slide_is_removed(backbone, slides, tmp_path):
    (tmp_path / ".a.h5.0123abcd.tmp").write_text("half")
    (tmp_path / ".other.h5.0123abcd.tmp").write_text("of somebody else")
    run(backbone, slides / "a.tif", tmp_path)
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [".other.h5.0123abcd.tmp"]


def test_a_change_of_another_file_of_the_same_slide_is_noticed(backbone, tmp_path):
    pytest.importorskip("pydicom", reason="pydicom, which writes the slide, is not installed (extra dicom)")
    pixels = slide_pixels(512, 384, (128, 128, 384, 256))
    (tmp_path / "in").mkdir()
    files = write_dicom_slide(tmp_path / "in", [pixels, pixels[::2, ::2]])
    output = tmp_path / "out"
    run(backbone, files[1], output)
    assert run(backbone, files[1], output).num_kept == 1
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-2] + bytes(2))
    assert run(backbone, files[1], output).num_embedded == 1


@pytest.mark.parametrize("changed", ["weights", "tiling", "resolution", "transform"])
def test_other_settings_embed_all_anew(backbone, slides, tmp_path, changed):
    run(backbone, slides, tmp_path)
    before = file_digests(tmp_path)
    other, tiling, forward = backbone, dict(TILING), ForwardOptions(batch_size=5, device="cpu")
    if changed == "weights":
        other = load_backbone("test_vit12", seed=1)
    elif changed == "tiling":
        tiling["overlap_px"] = 32
    elif changed == "resolution":
        tiling["slide_resolution_um_per_px"] = 0.25
    else:
        forward = ForwardOptions(batch_size=5, device="cpu", pool="avg")
    found = list_slides([slides])
    summary = embed_slides(found, other, tmp_path, tiling=TilingOptions(**tiling), forward=forward)
    assert summary.num_embedded == 4
    assert not set(file_digests(tmp_path).values()) & set(before.values())


def test_slides_that_fail_are_recorded_and_passed_over(backbone, tmp_path):
    slides, output = write_slides(tmp_path / "in", "d"), tmp_path / "out"
    (slides / "broken.svs").write_bytes((slides / "d.tif").read_bytes()[:3000])
    write_slide(slides / "unscaled.tif", um_per_px=None)
    write_slide(slides / "blank.tif", tissue=None)
    summary = run(backbone, slides, output, num_workers=2)
    assert (summary.num_embedded, summary.num_left) == (1, 0)
    assert [record.slide_id for record in summary.empty] == ["blank"]
    assert sorted(record.slide_id for record in summary.failed) == ["broken", "unscaled"]
    records = read_records(output)
    assert "give it with `slide_resolution_um_per_px`, or for this slide alone in the column 'um_per_px'" in (
        records["unscaled"].error
    )
    assert "lower `min_tissue`" in records["blank"].error
    assert records["broken"].error.startswith(f"{slides / 'broken.svs'}: ")
    assert list(file_digests(output)) == ["d"]
    # an empty slide stays empty, those that failed are tried again
    again = run(backbone, slides, output)
    assert attempts(output) == {"blank": 1, "broken": 2, "d": 1, "unscaled": 2}
    assert (again.num_kept, len(again.failed), len(again.empty)) == (2, 2, 1)
    # a resolution makes one of them readable
    table = slides / "table.csv"
    table.write_text("slide,um_per_px\nunscaled.tif,0.5\nd.tif,\n")
    last = run(backbone, table, output)
    assert (last.num_embedded, last.num_kept) == (1, 1)


def test_too_many_failures_end_the_run(backbone, tmp_path):
    slides = write_slides(tmp_path / "in", "d")
    for name in "xyz":
        write_slide(slides / f"{name}.tif", um_per_px=None)
    options = CohortOptions(max_failed=1)
    with pytest.raises(
        EvaluationError, match=r"2 of \d slides failed, and `max_failed=1` is the most, the last by: .*tif"
    ):
        run(backbone, [slides / f"{name}.tif" for name in "xyzd"], tmp_path / "out", options=options)
    states = [record.state for record in read_records(tmp_path / "out").values()]
    assert states.count("failed") == 2
    with pytest.raises(ParameterError, match="`max_failed` must be at least 0"):
        CohortOptions(max_failed=-1)


def test_what_every_slide_would_meet_ends_the_run(backbone, slides, tmp_path, monkeypatch):
    def compute(model, images, pooling):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("timm_mvhybrid.embed.source_embedding.pooled_features", compute)
    with pytest.raises(EvaluationError, match="out of memory on cpu with a batch of 5; try `batch_size=2`"):
        run(backbone, slides, tmp_path)
    assert not list(tmp_path.glob("*.h5"))
    assert not list(tmp_path.glob(".*"))


def test_files_of_others_are_kept_unless_that_is_asked_for(backbone, slides, tmp_path):
    (tmp_path / "c.h5").write_bytes(b"mine")
    with pytest.raises(
        EvaluationError, match=r"c\.h5: exists already, and was not written for a cohort; choose another"
    ):
        run(backbone, slides, tmp_path)
    assert os.listdir(tmp_path) == ["c.h5"]
    assert run(backbone, slides, tmp_path, overwrite=True).num_embedded == 4


def test_what_a_kill_between_file_and_record_leaves_is_known_by_the_file(backbone, slides, tmp_path):
    run(backbone, slides, tmp_path)
    before = read_records(tmp_path)
    times = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.h5")}
    (tmp_path / "cohort.jsonl").unlink()
    summary = run(backbone, slides, tmp_path)
    assert (summary.num_embedded, summary.num_kept, summary.num_left) == (0, 4, 0)
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.h5")} == times
    for name, record in read_records(tmp_path).items():
        known = before[name]
        assert (record.digests, record.tiles, record.stamp, record.path) == (
            known.digests,
            known.tiles,
            known.stamp,
            known.path,
        )
    (tmp_path / "cohort.jsonl").unlink()
    summary = run(backbone, slides, tmp_path, tiling={"overlap_px": 16})
    assert (summary.num_embedded, summary.num_kept) == (4, 0)
    assert set(attempts(tmp_path).values()) == {2}


def test_the_folder_of_the_inputs_is_refused(backbone, slides, tmp_path):
    write_coordinates(tmp_path / "a.h5", [[256, 256]], attributes=clam_attributes(64, 0))
    with pytest.raises(EvaluationError, match=r"a\.h5: is an input itself; choose another `output`"):
        run(backbone, tmp_path / "a.h5", tmp_path, place=slides, overwrite=True)


def test_coordinates_find_their_slides(backbone, slides, tmp_path):
    folder = tmp_path / "patches"
    folder.mkdir()
    for name in "ab":
        attributes = {**clam_attributes(64, 0), "name": name}
        write_coordinates(folder / f"{name}_patches.h5", [[256, 256], [320, 256]], attributes=attributes)
    assert run(backbone, folder, tmp_path / "out", place=slides).num_embedded == 2
    record = read_records(tmp_path / "out")["a"]
    assert (record.path, record.coords) == (str(slides / "a.tif"), str(folder / "a_patches.h5"))
    assert record.digests.keys() >= {"slide", "coords"}
    table = tmp_path / "table.csv"
    table.write_text(f"slide,coords\n{slides}/a.tif,patches/a_patches.h5\n{slides}/b.tif,\n")
    summary = run(backbone, table, tmp_path / "out")
    # a keeps what it was cut by; b is cut anew, without coordinates
    assert (summary.num_embedded, summary.num_kept) == (1, 1)
    assert attempts(tmp_path / "out") == {"a": 1, "b": 2}


def test_each_process_begins_with_slides_of_its_own(backbone, slides):
    planned = [
        PlannedSlide(slide=slide, digests={}, num_bytes=size)
        for slide, size in zip(list_slides([slides]), (9, 1, 5, 4), strict=True)
    ]
    orders = [own_first(planned, Ranks(rank=rank, world_size=2)) for rank in range(2)]
    names = [[one.slide.slide_id for one in order] for order, _ in orders]
    assert names == [["a", "b", "d", "c"], ["c", "d", "b", "a"]]
    assert [num_own for _, num_own in orders] == [2, 2]


def test_a_slide_that_another_process_is_at_is_left_to_it(backbone, slides, tmp_path):
    with claimed(tmp_path / "b.h5"):
        summary = run(backbone, slides, tmp_path)
    assert (summary.num_embedded, summary.num_left) == (3, 1)
    assert run(backbone, slides, tmp_path).num_embedded == 1


def test_a_stop_finishes_what_was_begun_and_leaves_nothing_half(backbone, slides, expected, tmp_path):
    asked = []
    calls = EngineCalls(on_batch=asked.append, stopping=lambda: len(asked) > 2)
    summary = run(backbone, slides, tmp_path, calls=calls)
    assert summary.stopped
    assert 1 <= summary.num_embedded < 4
    assert summary.num_left == 4 - summary.num_embedded
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".h5"} == {"cohort.jsonl"}
    run(backbone, slides, tmp_path)
    assert file_digests(tmp_path) == file_digests(expected)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("what", ["dies", "stalls"])
def test_a_reader_that_is_lost_is_named_and_its_patches_are_read_by_another(
    backbone, slides, expected, tmp_path, what
):
    lost, warnings = [], []

    def lose(report):
        if not lost:
            lost.extend(child.pid for child in multiprocessing.active_children() if "reader" in child.name)
            for process in lost:
                os.kill(process, signal.SIGKILL if what == "dies" else signal.SIGSTOP)

    summary = run(
        backbone,
        slides,
        tmp_path,
        num_workers=1,
        # whoever is not stopped may be slow, on a machine with other work, and is then only tried again
        options=CohortOptions(reader_timeout_s=1000 if what == "dies" else 5, max_reads=9),
        calls=EngineCalls(on_batch=lose),
        on_warning=warnings.append,
    )
    assert len(lost) == 1
    assert (summary.num_embedded, summary.failed) == (4, ())
    assert file_digests(tmp_path) == file_digests(expected)
    problem = "ended by SIGKILL" if what == "dies" else "has not answered for 5 s"
    assert f"reader 0 {problem}" in warnings[0]
    assert "another one tries it again (2 of 9)" in warnings[0]


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_slide_whose_readers_are_lost_again_and_again_fails(backbone, slides, tmp_path):
    def lose(sentence):
        for child in multiprocessing.active_children():
            if "reader" in child.name:
                os.kill(child.pid, signal.SIGKILL)

    summary = run(
        backbone,
        slides / "a.tif",
        tmp_path,
        num_workers=1,
        options=CohortOptions(max_reads=2),
        calls=EngineCalls(on_batch=lose),
        on_warning=lose,
    )
    (failed,) = summary.failed
    assert "ended by SIGKILL (out of memory?), 2 times in all; find out whether" in failed.error
    assert not list(tmp_path.glob("*.h5"))


def test_unreadable_patches_fail_their_slide_or_are_left_out(backbone, tmp_path):
    slides = write_slides(tmp_path / "in", "ad")
    with tifffile.TiffFile(slides / "a.tif") as file:
        # the tile of the largest level in which the tissue begins
        start = file.pages[0].dataoffsets[5]
    with (slides / "a.tif").open("r+b") as file:
        file.seek(start)
        file.write(bytes(64))
    summary = run(backbone, slides, tmp_path / "out")
    (failed,) = summary.failed
    assert failed.slide_id == "a"
    assert "unreadable region" in failed.error
    assert "`skip_corrupt=True`" in failed.error
    summary = run(backbone, slides, tmp_path / "out", skip_corrupt=True)
    record = read_records(tmp_path / "out")["a"]
    assert record.state == "done"
    assert record.num_corrupt > 0
    assert record.tiles + record.num_corrupt == 32


def test_a_folder_that_cannot_be_written_is_refused(backbone, slides, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        run(backbone, slides, tmp_path / "file" / "out")
