"""Tars and stores on other machines: read as local ones are, tried again, told apart, and no credential in any text."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest
from support.remote_files import PATCHES, write_store, write_tar
from support.remote_files import STORED as IMAGE
from support.web_servers import serving

from timm_mvhybrid.data import (
    DataError,
    Slide,
    TarSource,
    TilingOptions,
    list_slides,
    open_samples,
    open_source,
    remote_attempts,
    remote_path,
)
from timm_mvhybrid.data.remote_path import RemotePath
from timm_mvhybrid.data.slide_files import slide_fingerprint, slide_stamp
from timm_mvhybrid.runtime.errors import MissingPackageError, PatchError, RemoteError
from timm_mvhybrid.runtime.urls import without_credentials

pytest.importorskip("aiohttp", reason="aiohttp is not installed (extra remote)")
pytest.importorskip("fsspec", reason="fsspec is not installed (extra remote)")


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(remote_attempts, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(remote_path, "_IN_PARTS", set())


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    with serving(folder) as found:
        yield found


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra remote)")
    folder = tmp_path / "s3"
    (folder / "bucket" / "deep").mkdir(parents=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    with serving(folder, lists=True) as found:
        # one that fsspec has already keeps the server of another test
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        yield found


def read_all(source):
    return np.stack([np.asarray(source[index]) for index in range(len(source))])


def test_a_tar_is_read_where_it_is(site):
    write_tar(site.folder / "a b.tar")
    source = open_source(f"{site.url}/a%20b.tar")
    assert type(source) is TarSource
    assert np.array_equal(read_all(source), PATCHES)
    assert source.paths == [f"{number}.png" for number in range(6)]
    [slide] = list_slides([f"{site.url}/a%20b.tar"])
    assert slide.slide_id == "a b"


def test_each_patch_is_one_request_for_its_bytes(site):
    write_tar(site.folder / "a.tar")
    source = open_source(f"{site.url}/a.tar")
    site.requests.clear()
    source[3]
    [(method, _, headers)] = site.requests
    assert method == "GET"
    first, last = headers["Range"].removeprefix("bytes=").split("-")
    local = TarSource(site.folder / "a.tar")
    assert [int(first), int(last) + 1 - int(first)] == local._places[3, 1:].tolist()


def test_shards_of_a_pattern(site):
    for number in range(2):
        write_tar(site.folder / f"shard-{number:03d}.tar", PATCHES[3 * number : 3 * number + 3])
    source = open_source(f"{site.url}/shard-{{000..001}}.tar")
    assert np.array_equal(read_all(source), PATCHES)
    assert source.paths[3] == "shard-001.tar/0.png"


def test_names_of_members_that_lead_elsewhere_write_nothing(site, tmp_path):
    write_tar(site.folder / "a.tar", names="../../../evil{}.png")
    before = sorted(tmp_path.rglob("*"))
    source = open_source(f"{site.url}/a.tar")
    assert np.array_equal(read_all(source), PATCHES)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_is_read_by_its_chunks(site):
    write_store(site.folder / "slide.zarr")
    slide = Slide(f"{site.url}/slide.zarr")
    assert slide.resolution_um_per_px == pytest.approx(0.5)
    site.requests.clear()
    assert np.array_equal(np.asarray(slide.read((70, 70), (50, 50), (50, 50))), IMAGE[70:120, 70:120])
    assert len(site.requests) == 1
    source = open_source(f"{site.url}/slide.zarr", tiling=TilingOptions(patch_size_px=64, min_tissue=0))
    assert len(source) == 15
    assert np.array_equal(np.asarray(source[0]), IMAGE[:64, :64])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_source_is_read_after_a_fork_and_after_pickling(site):
    write_tar(site.folder / "a.tar")
    write_store(site.folder / "slide.zarr")
    tar, slide = open_source(f"{site.url}/a.tar"), Slide(f"{site.url}/slide.zarr")
    # the event loop and the connections of this process are in use before others get copies of them
    tar[0], slide.read((0, 0), (8, 8), (8, 8))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap_async(_read_both, [(tar, slide)] * 4).get(timeout=60)
    for patch, region in [*found, _read_both(*pickle.loads(pickle.dumps((tar, slide))))]:
        assert np.array_equal(patch, PATCHES[1])
        assert np.array_equal(region, IMAGE[:8, :8])


def _read_both(tar, slide):
    return np.asarray(tar[1]), np.asarray(slide.read((0, 0), (8, 8), (8, 8)))


@pytest.mark.parametrize("failures", [[503], ["cut"], [429, 500, "cut"]])
def test_a_passing_error_is_tried_again(site, failures):
    write_tar(site.folder / "a.tar")
    write_store(site.folder / "slide.zarr")
    source, slide = open_source(f"{site.url}/a.tar"), Slide(f"{site.url}/slide.zarr")
    site.failures.extend(failures)
    assert np.array_equal(np.asarray(source[1]), PATCHES[1])
    assert not site.failures
    site.failures.extend(failures)
    assert np.array_equal(np.asarray(slide.read((0, 0), (64, 64), (64, 64))), IMAGE[:64, :64])
    assert not site.failures


def test_what_stays_away_is_no_corrupt_patch(site):
    write_tar(site.folder / "a.tar")
    write_store(site.folder / "slide.zarr")
    source, slide = open_source(f"{site.url}/a.tar"), Slide(f"{site.url}/slide.zarr")
    for read in (lambda: source[1], lambda: slide.read((0, 0), (64, 64), (64, 64))):
        site.failures[:] = [503] * 20
        with pytest.raises(RemoteError, match=r"cannot be read \(503.*4 times\); find out whether") as caught:
            read()
        assert not isinstance(caught.value, PatchError)
        # no second try of a refusal
        site.failures[:] = [403]
        with pytest.raises(RemoteError, match=r"may not be read .*sign the URL anew"):
            read()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "slide.svs",
            r"slide.svs: \.svs, which slide libraries read from disks, cannot be streamed.*download it first",
        ),
        ("slide.dcm", "DICOM cannot be streamed"),
        ("coords.h5", "an h5 file cannot be streamed"),
        ("cohort.csv", "a table cannot be streamed"),
        ("page", "cannot be streamed, but only tars"),
        ("missing.tar", "there is no such file or store; check the URL"),
        ("missing.zarr", "there is no such file or store"),
        ("missing", "there is no such file"),
        ("*.tar", "a web server lists no files"),
        ("slide.zarr?sig=1f", "a zarr store has many files, and a URL with a query is of one"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_work_starts(site, name, message):
    for file in ("slide.svs", "slide.dcm", "coords.h5", "cohort.csv", "page"):
        (site.folder / file).write_bytes(b"something else" * 100)
    with pytest.raises(DataError, match=message):
        list_slides([f"{site.url}/{name}"])


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("nothing://host/a.tar", DataError, "nothing:// is not known"),
        ("file:///slides/a.tar", DataError, "give a path of this machine"),
        ("https://host", DataError, "give the URL of a file"),
        ("zip://a.tar::https://host/a.zip", DataError, "cannot be streamed"),
        ("dropbox://a/b.tar", MissingPackageError, r"pip install 'timm-mvhybrid\[remote\]'"),
    ],
)
def test_a_url_that_nothing_here_reads_is_refused(url, kind, message):
    with pytest.raises(kind, match=message):
        list_slides([url])


def test_a_server_without_parts_is_refused_before_it_sends_all(site):
    write_tar(site.folder / "a.tar")
    site.ranges = False
    with pytest.raises(RemoteError, match=r"sends whole files only.*download the file first"):
        open_source(f"{site.url}/a.tar")


def test_a_change_is_noticed_and_a_copy_is_not_one(site):
    url, file = f"{site.url}/a.tar", site.folder / "a.tar"
    for etags in (True, False):
        site.etags = etags
        write_tar(file)
        before = slide_fingerprint(RemotePath(url)), slide_stamp(RemotePath(url))
        assert before == (
            slide_fingerprint(RemotePath(url + "?signed=1")),
            slide_stamp(RemotePath(url + "?signed=2")),
        )
        write_tar(file, PATCHES[:5])
        os.utime(file, (0, 0))
        assert slide_fingerprint(RemotePath(url)) != before[0]
        assert slide_stamp(RemotePath(url)) != before[1]
    store = RemotePath(f"{site.url}/slide.zarr")
    write_store(site.folder / "slide.zarr")
    before = slide_fingerprint(store)
    assert before == slide_fingerprint(store)
    changed = IMAGE.copy()
    changed[150, 300] += 1
    write_store(site.folder / "slide.zarr", changed)
    assert slide_fingerprint(store) != before


def test_redirects_are_followed_and_a_source_keeps_its_name(site):
    write_tar(site.folder / "real.tar")
    site.redirects["a.tar"] = f"{site.url}/real.tar?token=hidden"
    source = open_source(f"{site.url}/a.tar")
    assert np.array_equal(read_all(source), PATCHES)
    assert str(source.path) == f"{site.url}/a.tar"
    assert "hidden" not in slide_stamp(source.path)


def test_credentials_are_used_and_stand_in_no_text(site):
    write_tar(site.folder / "a.tar")
    site.query = "X-Amz-Signature=1f3c&x=%2F"
    url = f"{site.url}/a.tar?{site.query}".replace("//", "//me:secret@")
    source = open_source(url)
    assert np.array_equal(np.asarray(source[1]), PATCHES[1])
    assert any("Authorization" in headers for _, _, headers in site.requests)
    texts = [
        str(source.path),
        repr(source.path),
        source.name(1),
        repr(list_slides([url])),
        slide_stamp(source.path),
    ]
    for failures in ([503] * 20, [403] * 20, ["cut"] * 20, [404] * 20):
        site.failures[:] = failures
        with pytest.raises(RemoteError) as caught:
            source[1]
        texts.append(f"{caught.value!r} {caught.value.__cause__!r}")
        site.failures[:] = failures
        with pytest.raises(RemoteError) as caught:
            open_source(url)
        texts.append(str(caught.value))
    assert not any(word in text for text in texts for word in ("secret", "1f3c", "Signature", "me:"))


def test_texts_lose_what_may_be_secret():
    text = "GET https://u:p@h.org/a/b.tar?sig=1#x and s3://k:s@b/c failed, not mail me@h.org"
    assert without_credentials(text) == "GET https://h.org/a/b.tar and s3://b/c failed, not mail me@h.org"


def test_rows_of_a_table(site, tmp_path):
    write_tar(site.folder / "a.tar")
    write_store(site.folder / "slide.zarr")
    table = tmp_path / "cohort.csv"
    table.write_text(
        f"slide,path,um_per_px\n{site.url}/a.tar?sig=1,,\ncase 1,{site.url}/slide.zarr,0.25\n",
        encoding="utf-8",
    )
    slides = list_slides([table])
    assert [(slide.slide_id, slide.um_per_px) for slide in slides] == [("a", None), ("case 1", 0.25)]
    assert all(isinstance(slide.path, RemotePath) for slide in slides)
    table.write_text(f"slide,coords\n{site.url}/slide.zarr,{site.url}/c.h5?sig=1f3c\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"coordinates cannot be streamed; download .*first") as caught:
        list_slides([table])
    assert "1f3c" not in str(caught.value)


def test_a_manifest_names_tars_on_other_machines(site, tmp_path):
    write_tar(site.folder / "a.tar")
    assert len(open_samples(f"{site.url}/a.tar")) == 6
    manifest = tmp_path / "manifest.json"
    manifest.write_text(f'{{"sources": [{{"path": "{site.url}/a.tar?sig=1f3c", "suffix": ".png"}}]}}')
    samples = open_samples(manifest)
    assert len(samples) == 6
    assert samples.names == ("a.tar",)


def test_a_bucket(bucket):
    deep = bucket.folder / "bucket" / "deep"
    write_tar(deep / "a b.tar")
    write_store(deep / "slide.zarr")
    source = open_source("s3://bucket/deep/a b.tar")
    bucket.failures.extend([503, "cut"])
    assert np.array_equal(read_all(source), PATCHES)
    slide = Slide("s3://bucket/deep/slide.zarr")
    assert np.array_equal(np.asarray(slide.read((0, 0), (64, 64), (64, 64))), IMAGE[:64, :64])
    for given in ("s3://bucket/deep", "s3://bucket/deep/", "s3://bucket/*/*"):
        assert [slide.slide_id for slide in list_slides([given])] == ["a b", "slide"]
    for missing in ("deep/b.tar", "deep/b.zarr", "b", "deep/slide.svs"):
        with pytest.raises(DataError, match=r"there is no such|cannot be streamed"):
            list_slides([f"s3://bucket/{missing}"])
    store = RemotePath("s3://bucket/deep/slide.zarr")
    before = slide_fingerprint(store)
    assert before == slide_fingerprint(store)
    chunk = next(file for file in sorted((deep / "slide.zarr" / "0").rglob("*")) if file.is_file())
    chunk.write_bytes(chunk.read_bytes() + b"!")
    assert slide_fingerprint(store) != before
