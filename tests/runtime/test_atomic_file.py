import errno
import os
import pickle

import h5py
import numpy as np
import pytest
from support.limited_disks import at_every_byte

from timm_mvhybrid.runtime.atomic_file import OutputFile, remove_leftovers, write_file, write_files
from timm_mvhybrid.runtime.atomic_folder import OutputFolder
from timm_mvhybrid.runtime.errors import OutputError, TimmMVHybridError, check_space, is_of_the_disk
from timm_mvhybrid.runtime.h5_output import H5Output
from timm_mvhybrid.runtime.line_file import LineFile

CONTENT = bytes(range(256)) * 2


def refuse(number):
    def act(*_, **__):
        raise OSError(number, os.strerror(number))

    return act


def write_h5(path, replace=True):
    with H5Output(path, replace=replace) as output:
        rows = output.file.create_dataset("rows", (0, 8), maxshape=(None, 8), chunks=(4, 8), dtype="f4")
        for number in range(3):
            rows.resize(4 * (number + 1), axis=0)
            rows[4 * number :] = np.full((4, 8), number)
            output.check()
        output.file.create_dataset(
            "names", data=np.array(["a", "b"], dtype=object), dtype=h5py.string_dtype()
        )
        output.finish()


def check_file(size, folder, write, whole):
    """Writes over "old" with no more than `size` bytes a file."""
    path = folder / "file"
    if path.exists():
        path.unlink()
    path.write_bytes(b"old"[:size])
    before = path.read_bytes()
    if size >= whole:
        write(path)
        assert path.stat().st_size == whole
    else:
        with pytest.raises(
            OutputError, match=r"file: cannot be written \(File too large; [\d,]+ bytes needed\)"
        ):
            write(path)
        assert path.read_bytes() == before
    assert os.listdir(folder) == ["file"]


class Check:
    """A check that other processes can be handed."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __call__(self, size):
        check_file(size, *self.arguments)


def write_content(path):
    write_file(path, CONTENT)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(("write", "step", "start"), [(write_content, 1, "fork"), (write_h5, 61, "spawn")])
def test_a_file_is_whole_or_as_it_was_whichever_byte_the_disk_refuses(tmp_path, write, step, start):
    write(tmp_path / "file")
    whole = (tmp_path / "file").stat().st_size
    at_every_byte(Check(tmp_path, write, whole), [*range(0, whole, step), whole - 1, whole], start)


def check_line(size, folder):
    log = folder / "log.jsonl"
    log.write_text("")
    with LineFile(log) as file:
        for _ in range(min(size // 11, 4)):
            file.write("0123456789")
        if size < 44:
            with pytest.raises(OutputError, match=r"log\.jsonl: .* \(File too large; 11 bytes needed\)"):
                file.write("0123456789")
    assert log.read_text() == "0123456789\n" * min(size // 11, 4)


class CheckLine(Check):
    def __call__(self, size):
        check_line(size, *self.arguments)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_line_is_whole_or_absent_whichever_byte_the_disk_refuses(tmp_path):
    at_every_byte(CheckLine(tmp_path), range(50))


def test_a_line_after_one_that_a_killed_process_left_half_stands_by_itself(tmp_path):
    (tmp_path / "log").write_text('{"whole": 1}\n{"half')
    with LineFile(tmp_path / "log") as file:
        file.write("next")
        file.write("last")
    assert (tmp_path / "log").read_text() == '{"whole": 1}\n{"half\nnext\nlast\n'


def test_a_failed_line_does_not_cut_what_another_process_appended(tmp_path, monkeypatch):
    log = tmp_path / "log"
    with LineFile(log) as file:
        file.write("mine")
        with log.open("a") as other:
            other.write("theirs\n")

        class Full:
            def write(self, _):
                with log.open("a") as other:
                    other.write("theirs too\n")
                refuse(errno.ENOSPC)()

            def __getattr__(self, name):
                return getattr(real, name)

        real = file._file
        monkeypatch.setattr(file, "_file", Full())
        with pytest.raises(OutputError, match="No space left on device; 10 bytes needed"):
            file.write("mine, too")
        monkeypatch.setattr(file, "_file", real)
    assert log.read_text() == "mine\ntheirs\ntheirs too\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["fsync", "link"])
def test_what_the_system_says_late_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, number, call):
    # over NFS the server may refuse as late as this
    monkeypatch.setattr(os, call, refuse(number))
    with OutputFile(tmp_path / "out.bin", replace=False) as file:
        file.write(CONTENT)
        with pytest.raises(
            OutputError, match=rf"out\.bin: cannot be written \({os.strerror(number)}"
        ) as caught:
            file.finish()
    assert "512 bytes needed" in str(caught.value)
    assert ("free)" in str(caught.value)) == (number == errno.ENOSPC)
    assert os.listdir(tmp_path) == []
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_name_that_another_process_took_meanwhile_is_left_to_it(tmp_path):
    for has_links in (True, False):
        with pytest.MonkeyPatch.context() as patch, OutputFile(tmp_path / "out", replace=False) as file:
            if not has_links:
                patch.setattr(os, "link", refuse(errno.EPERM))
            file.write(b"mine")
            (tmp_path / "out").write_text("theirs")
            with pytest.raises(OutputError, match=r"another process wrote it meanwhile; .*`overwrite=True`"):
                file.finish()
        assert (tmp_path / "out").read_text() == "theirs"
        assert os.listdir(tmp_path) == ["out"]


def test_without_hard_links_a_free_name_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EOPNOTSUPP))
    with OutputFile(tmp_path / "out", replace=False) as file:
        file.write(b"mine")
        file.finish()
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "mine"


def test_files_that_belong_together_are_all_written_or_none(tmp_path, monkeypatch):
    old = {tmp_path / name: name for name in ("a", "b", "c")}
    write_files(old)
    sync, calls = os.fsync, []

    def third(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            refuse(errno.ENOSPC)()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", third)
    with pytest.raises(OutputError, match=r"c: cannot be written \(No space left on device; 3 bytes needed"):
        write_files({path: "new" for path in old})
    assert {path: path.read_text() for path in tmp_path.iterdir()} == old


def fill(output, name, content, **options):
    with OutputFolder(output, **options) as folder:
        folder.add_folder("inner")
        folder.add(f"inner/{name}", content)
        folder.finish()


def test_a_folder_is_whole_or_as_it_was_and_messages_have_its_real_name(tmp_path, monkeypatch):
    output = tmp_path / "out"
    fill(output, "file", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.ENOSPC))
        with pytest.raises(OutputError, match=r"out.inner.file: cannot be written \(No space left") as caught:
            fill(output, "file", "new")
    assert ".tmp" not in str(caught.value)
    assert (output / "inner/file").read_text() == "old"
    with pytest.raises(OutputError, match="another process wrote it meanwhile"):
        fill(output, "file", "mine", replace=False)
    fill(output, "other", "new")
    assert os.listdir(output / "inner") == ["other"]
    assert os.listdir(tmp_path) == ["out"]


def test_h5_reads_back_what_it_wrote(tmp_path):
    write_h5(tmp_path / "out.h5", replace=False)
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["rows"][:, 0], np.repeat([0, 1, 2], 4))
        assert file["names"].asstr()[()].tolist() == ["a", "b"]


def test_an_error_of_the_caller_stays_what_it_is(tmp_path):
    with pytest.raises(KeyError, match="absent"), H5Output(tmp_path / "out.h5") as output:
        output.file["absent"]
    assert os.listdir(tmp_path) == []


def test_what_does_not_fit_is_known_before(tmp_path):
    check_space(tmp_path / "not/there/yet", 1)
    with pytest.raises(
        TimmMVHybridError,
        match=r"out\.h5: cannot be written \(No space left on device; 1,152,9.* bytes needed, [\d,]+ free\); make room",
    ):
        check_space(tmp_path / "out.h5", 2**60)


def test_a_network_that_fails_is_not_a_disk():
    assert is_of_the_disk(OSError(errno.ENOSPC, "", "file"))
    assert is_of_the_disk(PermissionError(errno.EACCES, "", "file"))
    assert not is_of_the_disk(PermissionError(errno.EPERM, ""))
    assert not is_of_the_disk(ConnectionRefusedError(errno.ECONNREFUSED, ""))
    assert not is_of_the_disk(ValueError())


def test_what_killed_processes_left_is_removed_and_nothing_that_is_named_alike(tmp_path):
    name = "a[1].zarr"  # brackets are a pattern to glob
    (tmp_path / f".{name}.0123abcd.tmp").mkdir()
    (tmp_path / f".{name}.0123abcd.tmp" / "half").write_text("half")
    (tmp_path / f".{name}.0123abcd.old").mkdir()
    (tmp_path / f".{name}.89abcdef.tmp").write_text("half")
    others = {name, ".a1.zarr.0123abcd.tmp", f".{name}.lock", f".{name}.0123abcd.h5", f".{name}.tmp"}
    for other in others:
        (tmp_path / other).write_text("")
    remove_leftovers(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == others
