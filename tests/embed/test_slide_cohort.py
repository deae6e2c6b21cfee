"""cohort.jsonl: the last line of a slide counts, halves of lines do not, and several processes append."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from timm_mvhybrid.embed.slide_cohort import COHORT_FILE, RecordLog, SlideRecord, read_records
from timm_mvhybrid.runtime.errors import DataError


def record(slide_id, state="done", **values):
    return SlideRecord(slide_id=slide_id, path=f"/slides/{slide_id}.svs", state=state, **values)


def test_what_was_appended_is_read_and_the_last_of_a_slide_counts(tmp_path):
    failed = record("b", "failed", error="b: broken; scan it again", warnings=("one", "two"))
    done = record("b", attempts=2, tiles=7, seconds=1.5, file="b.h5", digests={"file": "ab"}, finished="now")
    log = RecordLog(tmp_path)
    for found in (record("ä"), failed, record("c", "empty"), done):
        log.append(found)
    assert log.records == {}
    assert read_records(tmp_path) == {"ä": record("ä"), "b": done, "c": record("c", "empty")}
    assert list(read_records(tmp_path)) == ["ä", "b", "c"]
    assert log.refresh() == read_records(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [COHORT_FILE]


def test_a_torn_last_line_is_left_out_and_stays_a_line_of_its_own(tmp_path):
    log = RecordLog(tmp_path)
    log.append(record("a"))
    with log.path.open("ab") as file:
        file.write(b'{"slide_id": "b", "pa')
    assert read_records(tmp_path) == {"a": record("a")}
    log.refresh()
    log.append(record("c"))
    assert read_records(tmp_path) == {"a": record("a"), "c": record("c")} == log.refresh()


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path):
    log = RecordLog(tmp_path)
    line = json.dumps(dataclasses.asdict(record("a"))).encode() + b"\n"
    log.path.write_bytes(line[:20])
    assert log.refresh() == {}
    log.path.write_bytes(line)
    assert log.refresh() == {"a": record("a")}


def test_a_line_of_something_else_is_named(tmp_path):
    RecordLog(tmp_path).append(record("a"))
    with (tmp_path / COHORT_FILE).open("a") as file:
        file.write('{"slide": "a"}\n')
    with pytest.raises(
        DataError, match=r"cohort\.jsonl: line 2: missing or unknown: .*; choose another folder"
    ):
        read_records(tmp_path)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cohort\.jsonl: missing; give a folder that"):
        read_records(tmp_path)


def test_writers_at_once_lose_nothing(tmp_path):
    def write(writer):
        log = RecordLog(tmp_path)
        for number in range(20):
            log.append(record(f"{writer}-{number}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(read_records(tmp_path)) == 80
    assert len((tmp_path / COHORT_FILE).read_bytes().splitlines()) == 80
