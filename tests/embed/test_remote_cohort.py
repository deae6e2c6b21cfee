"""Slides of a cohort on another machine: the same features as from this one, changes noticed, nothing secret written."""

import tarfile

import numpy as np
import pytest
from support.generated_slides import slide_pixels
from support.remote_files import write_store, write_tar
from support.slide_folders import TILING, content
from support.web_servers import serving

from timm_mvhybrid.cli import main
from timm_mvhybrid.data import TilingOptions, list_slides, remote_attempts
from timm_mvhybrid.embed.cohort_run import embed_slides
from timm_mvhybrid.embed.embeddings import ForwardOptions
from timm_mvhybrid.embed.slide_cohort import read_records
from timm_mvhybrid.evaluate import load_backbone

pytest.importorskip("aiohttp", reason="aiohttp is not installed (extra remote)")
pytest.importorskip("zarr", reason="zarr is not installed")


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_attempts, "FIRST_WAIT_S", 0.001)
    folder = tmp_path / "site"
    folder.mkdir()
    write_tar(folder / "patches.tar")
    write_store(folder / "slide.zarr", slide_pixels(512, 384, (128, 128, 384, 256)))
    with serving(folder) as found:
        yield found


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("test_vit12")


def run(backbone, inputs, output, num_workers=0):
    return embed_slides(
        list_slides(inputs),
        backbone,
        output,
        tiling=TilingOptions(**TILING),
        forward=ForwardOptions(batch_size=5, device="cpu", num_workers=num_workers),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_features_are_those_of_local_copies(backbone, site, tmp_path, num_workers):
    names = ("patches.tar", "slide.zarr")
    remote, local = tmp_path / "remote", tmp_path / "local"
    summary = run(backbone, [f"{site.url}/{name}" for name in names], remote, num_workers)
    assert (summary.num_embedded, summary.failed) == (2, ())
    run(backbone, [site.folder / name for name in names], local)
    for name in ("patches", "slide"):
        found, expected = (content(folder / f"{name}.h5") for folder in (remote, local))
        assert len(expected["embeddings"]) > 5
        for key in ("embeddings", "coords", "paths"):
            assert (key in found) == (key in expected)
            if key in expected:
                np.testing.assert_array_equal(found[key], expected[key])
        assert found["attributes"]["source"] == expected["attributes"]["source"]
    records = read_records(remote)
    assert {name: record.path for name, record in records.items()} == {
        "patches": f"{site.url}/patches.tar",
        "slide": f"{site.url}/slide.zarr",
    }


def test_a_second_run_does_what_changed(backbone, site, tmp_path):
    inputs, output = [f"{site.url}/patches.tar?sig=1", f"{site.url}/slide.zarr"], tmp_path / "out"
    run(backbone, inputs, output)
    # signed anew
    inputs[0] = f"{site.url}/patches.tar?sig=2"
    site.requests.clear()
    assert run(backbone, inputs, output).num_kept == 2
    assert not any("Range" in headers for _, path, headers in site.requests if "patches" in path)
    with tarfile.open(site.folder / "patches.tar", "a") as archive:
        archive.add(__file__, "more.txt")
    assert run(backbone, inputs, output).num_embedded == 1
    assert {name: record.attempts for name, record in read_records(output).items()} == {
        "patches": 2,
        "slide": 1,
    }
    changed = slide_pixels(512, 384, (128, 128, 384, 256))
    changed[200, 200] = 0
    write_store(site.folder / "slide.zarr", changed)
    assert run(backbone, inputs, output).num_embedded == 1


def test_a_machine_that_goes_away_fails_its_slides_and_no_patch_is_left_out(
    site, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    site.query = "sig=1f3c"
    url = f"{site.url}/patches.tar?{site.query}".replace("//", "//me:secret@")
    command = ["embed", "--model", "test_vit12", "--device", "cpu", "--num-workers", "0", "--batch-size", "2"]
    command += ["--skip-corrupt", "--log", "log.jsonl", "--output", "out"]

    def go_away(handle, *arguments):
        if len([1 for _, _, headers in site.requests if "Range" in headers]) > 6:
            site.failures[:] = [500] * 100
        return handle(*arguments)

    with monkeypatch.context() as patched:
        from timm_mvhybrid.data import TarSource

        read = TarSource.__getitem__
        patched.setattr(TarSource, "__getitem__", lambda source, index: go_away(read, source, index))
        assert main([*command, url]) == 3
    record = read_records(tmp_path / "out")["patches"]
    assert record.state == "failed"
    assert "find out whether the machine answers" in record.error
    site.failures.clear()
    assert main([*command, url]) == 0
    record = read_records(tmp_path / "out")["patches"]
    assert (record.state, record.tiles, record.num_corrupt, record.attempts) == ("done", 6, 0, 2)
    assert main([*command[:7], "--output", "one.h5", url]) == 0
    # of all that was written, and said
    written = [
        file.read_bytes()
        for file in tmp_path.rglob("*")
        if file.is_file() and site.folder not in file.parents
    ]
    said = capsys.readouterr()
    texts = [*written, said.out.encode(), said.err.encode()]
    assert len(written) >= 4
    assert not any(word in text for text in texts for word in (b"secret", b"1f3c"))
