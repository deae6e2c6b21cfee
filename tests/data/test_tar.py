import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from support.generated_patches import random_patches

from timm_mvhybrid.data import DataError, PatchError, TarSource, open_source
from timm_mvhybrid.data.folder import read_image
from timm_mvhybrid.data.tar import expand_shards

PATCHES = random_patches(6, size=24)


def image_bytes(patch, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(patch).save(stream, kind)
    return stream.getvalue()


def write_tar(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_webdataset(path, numbers):
    members = []
    for number in numbers:
        members += [
            (f"{number:06d}.png", image_bytes(PATCHES[number])),
            (f"{number:06d}.json", b'{"slide": "a"}'),
            (f"{number:06d}.cls", b"1"),
        ]
    write_tar(path, members)


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        write_webdataset(tmp_path / f"shard-{shard:03d}.tar", [2 * shard, 2 * shard + 1])
    return tmp_path


@pytest.mark.parametrize("path", ["", "shard-{000..002}.tar"])
def test_shards_are_one_source_in_their_order(shards, path):
    source = open_source(shards / path)
    assert type(source) is TarSource
    np.testing.assert_array_equal(np.stack([np.asarray(source[i]) for i in range(len(source))]), PATCHES)
    assert source.paths[:3] == [
        "shard-000.tar/000000.png",
        "shard-000.tar/000001.png",
        "shard-001.tar/000002.png",
    ]
    assert source.name(4) == f"{shards / 'shard-002.tar'} member 000004.png"


def test_a_single_tar_is_told_by_its_content(shards):
    (shards / "shard-001.tar").rename(shards / "patches.data")
    source = open_source(shards / "patches.data")
    assert source.paths == ["000002.png", "000003.png"]
    np.testing.assert_array_equal(np.asarray(source[1]), PATCHES[3])


def test_images_may_be_read_in_any_order_and_by_a_copy_in_another_process(shards):
    source = pickle.loads(pickle.dumps(TarSource(shards)))
    for index in (5, 0, 3, 0):
        np.testing.assert_array_equal(np.asarray(source[index]), PATCHES[index])


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_three_formats_and_long_names(tmp_path, format):
    name = f"{'folder/' * 18}{'n' * 60}.png"
    write_tar(
        tmp_path / "x.tar", [(name, image_bytes(PATCHES[0])), ("b.PNG", image_bytes(PATCHES[1]))], format
    )
    source = TarSource(tmp_path / "x.tar")
    assert source.paths == [name, "b.PNG"]
    np.testing.assert_array_equal(np.asarray(source[1]), PATCHES[1])


def test_only_images_are_listed_and_nothing_leaves_the_tar(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, target in [
            ("folder", tarfile.DIRTYPE, ""),
            ("link.png", tarfile.SYMTYPE, "/etc/passwd"),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        for name, content in [
            ("../../escape.png", image_bytes(PATCHES[0])),
            ("a.pickle", b"cos\nsystem\n."),
            ("._a.png", b"resource fork"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    source = TarSource(path)
    assert source.paths == ["../../escape.png"]
    np.testing.assert_array_equal(np.asarray(source[0]), PATCHES[0])
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["data", "x.tar"]


def test_wherever_a_tar_is_cut_off_it_is_refused_by_name(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, [(f"{i}.png", image_bytes(PATCHES[i])) for i in range(3)])
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive] + [archive.offset]
    cuts = {0, 300, *starts, *(start - 700 for start in starts[1:]), *(start + 300 for start in starts)}
    for cut in sorted(cuts):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"x\.tar: .*(truncated|damaged)"):
            TarSource(path)
    path.write_bytes(content[: starts[-1] + 1024])
    assert len(TarSource(path)) == 3


def test_a_damaged_header_does_not_end_the_tar_silently(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, [(f"{i}.png", image_bytes(PATCHES[i])) for i in range(3)])
    with tarfile.open(path) as archive:
        start = archive.getmembers()[1].offset
    content = bytearray(path.read_bytes())
    content[start + 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.tar: damaged after byte {start}"):
        TarSource(path)


def test_joined_tars_are_refused_for_their_second_part_would_be_lost(shards):
    joined = shards / "joined.tar"
    joined.write_bytes(b"".join((shards / f"shard-00{i}.tar").read_bytes() for i in range(2)))
    with pytest.raises(DataError, match=r"joined\.tar: .*several tars joined"):
        TarSource(joined)


def test_a_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DataError, match=r"x\.tar: not an uncompressed tar"):
        open_source(tmp_path / "x.tar")


def test_missing_shards_are_named(shards):
    with pytest.raises(DataError, match=r"shard-003\.tar: no such tar \(2 of 5"):
        open_source(shards / "shard-{000..004}.tar")


def test_a_tar_without_images(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.json", b"{}")])
    with pytest.raises(DataError, match=r"x\.tar: no image"):
        open_source(tmp_path / "x.tar")


def test_masks_are_not_taken_for_images(tmp_path):
    members = [
        (f"{i}{suffix}.png", image_bytes(patch))
        for i in range(2)
        for suffix, patch in (("", PATCHES[i]), (".mask", PATCHES[i + 2]))
    ]
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=r"sample '0' holds 2 images \(\.png, \.mask\.png, …\).*suffix"):
        TarSource(tmp_path / "x.tar")
    masks = TarSource(tmp_path / "x.tar", suffix=".mask.png")
    np.testing.assert_array_equal(np.asarray(masks[1]), PATCHES[3])


def test_an_undecodable_image_is_one_corrupt_patch(tmp_path):
    good = image_bytes(PATCHES[0])
    write_tar(tmp_path / "x.tar", [("a.png", good), ("b.png", good[: len(good) // 2]), ("c.png", b"")])
    source = TarSource(tmp_path / "x.tar")
    assert np.array_equal(np.asarray(source[0]), PATCHES[0])
    for index, name in ((1, "b.png"), (2, "c.png")):
        with pytest.raises(PatchError, match=rf"x\.tar member {name}: not a readable image"):
            source[index]
    os.truncate(tmp_path / "x.tar", 600)
    with pytest.raises(PatchError, match=r"x\.tar member a\.png: the tar was cut off"):
        source[0]


def test_ranges_count_as_in_a_shell():
    assert expand_shards("a.tar") == ["a.tar"]
    assert expand_shards("{9..11}/{00..1}") == ["9/00", "9/01", "10/00", "10/01", "11/00", "11/01"]
    with pytest.raises(DataError, match="counts down"):
        expand_shards("{3..1}.tar")


def test_members_that_are_no_images_are_named_without_an_address():
    with pytest.raises(PatchError) as refusal:
        read_image(io.BytesIO(b"no image"), "x.tar member a.png")
    assert (
        str(refusal.value) == "x.tar member a.png: not a readable image (of a kind that Pillow does not know)"
    )
