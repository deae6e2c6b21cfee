"""Tar shards, as WebDataset lays them out: tars → images by random access, without unpacking.

A sample is a group of members with one key, ``key.jpg``, ``key.json``, …; only images are read, and only images are
ever decoded.
"""

from __future__ import annotations

import io
import itertools
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.errors import DataError, PatchError
from .folder import IMAGE_SUFFIXES, read_image
from .remote_path import AnyPath, RemotePath, as_path, read_part

TAR_SUFFIX = ".tar"
_BLOCK = tarfile.BLOCKSIZE
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_tar(start: bytes) -> bool:
    """Says by the first 512 bytes of a file whether it is a POSIX or GNU tar."""
    return start[257:262] == b"ustar"


def expand_shards(pattern: str) -> list[str]:
    """Expands brace ranges as shells do: ``{000..010}`` counts up with leading zeros; none may count down.

    Examples:
        >>> expand_shards("shard-{08..10}.tar")
        ['shard-08.tar', 'shard-09.tar', 'shard-10.tar']
    """
    parts = _RANGE.split(pattern)
    choices: list[list[str]] = [[parts[0]]]
    for first, last, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if int(first) > int(last):
            raise DataError(f"{pattern}: the range {{{first}..{last}}} counts down")
        width = len(first) if first.startswith("0") or last.startswith("0") else 0
        choices.append([f"{number:0{width}d}" for number in range(int(first), int(last) + 1)])
        choices.append([text])
    return ["".join(choice) for choice in itertools.product(*choices)]


def find_shards(path: str | AnyPath) -> list[AnyPath]:
    """Lists the tars that a path stands for: a tar, a pattern with brace ranges, or a folder, not searched recursively."""
    path = as_path(path)
    if isinstance(path, RemotePath):
        return [*path.expanded(expand_shards)]
    if path.is_dir():
        found = sorted(
            file for file in path.glob(f"*{TAR_SUFFIX}") if not file.name.startswith(".") and file.is_file()
        )
        if not found:
            raise DataError(f"{path}: the folder holds no {TAR_SUFFIX}")
        return [*found]
    shards = [path] if path.exists() else [Path(shard) for shard in expand_shards(str(path))]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: no such tar ({len(missing)} of {len(shards)} of {path} are missing)")
    return [*shards]


def _image_members(path: AnyPath) -> Iterator[tuple[str, int, int]]:
    """Walks through the headers of a tar: name, offset and size in bytes of each image."""
    end = 0
    try:
        # "r:" refuses compressed tars, which allow no random access
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                end = archive.offset
                # tarfile keeps every member; a shard may have a hundred thousand
                archive.members = []  # type: ignore[attr-defined]
                if not member.isreg() or not _is_image(member.name):
                    continue
                if member.issparse():
                    raise DataError(
                        f"{path}: member {member.name!r} is sparse; write the tar without --sparse"
                    )
                yield member.name, member.offset_data, member.size
    except tarfile.TarError as error:
        raise DataError(f"{path}: not an uncompressed tar, or damaged ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    _check_end(path, end)


def _check_end(path: AnyPath, end: int) -> None:
    """Makes sure that the walk ended at the end mark, because tarfile stops silently at damage."""
    with path.open("rb") as stream:
        stream.seek(end)
        mark = stream.read(_BLOCK)
        if len(mark) < _BLOCK:
            raise DataError(f"{path}: truncated, its end mark is missing; copy or write it again")
        while mark:
            if mark.count(0) != len(mark):
                raise DataError(
                    f"{path}: damaged after byte {end}, or several tars joined into one file; copy or write it again"
                )
            mark = stream.read(1 << 20)


def _is_image(name: str) -> bool:
    """Recognises images by their suffix; hidden files are left out as in folders."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def _key(name: str) -> str:
    """Names a member's sample: its path up to the first dot of the file's name, as WebDataset does."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


class TarSource:
    """Every image of one or more tars, in their order.

    The headers are read once, when the source is opened (about 20 µs a member on a local disk); afterwards an image is
    one read at a known place. Nothing is unpacked to disk, and members that are not images are left alone.

    Args:
        path: A tar, a pattern such as ``shard-{000000..000009}.tar``, or a folder of tars; or the URL of a tar, or such a
            pattern of URLs.
        suffix: End of the names to take, such as ".jpg", for samples that hold several images; None takes every image
            and requires that no sample holds two.

    Raises:
        DataError: If a tar is missing, compressed or damaged, there is no image, or a sample holds several.
        RemoteError: Another machine does not answer.
    """

    coords = None
    barcodes = None
    patch_size_px = None
    resolution_um_per_px = None

    def __init__(self, path: str | AnyPath, suffix: str | None = None) -> None:
        self.path = as_path(path)
        self.shards = find_shards(path)
        names: list[str] = []
        places: list[tuple[int, int, int]] = []
        for number, shard in enumerate(self.shards):
            found = [
                member for member in _image_members(shard) if suffix is None or member[0].endswith(suffix)
            ]
            if suffix is None:
                _check_one_image(shard, [name for name, _, _ in found])
            names.extend(name for name, _, _ in found)
            places.extend((number, offset, size) for _, offset, size in found)
        if not names:
            wanted = " ".join(IMAGE_SUFFIXES) if suffix is None else suffix
            raise DataError(f"{self.path}: no image ({wanted}) among the members")
        self._names = names
        self._places: NDArray[np.int64] = np.array(places, dtype=np.int64)

    @property
    def paths(self) -> list[str]:
        """The images' names, after the shard's name if there are several shards."""
        if len(self.shards) == 1:
            return list(self._names)
        numbers = self._places[:, 0].tolist()
        return [f"{self.shards[n].name}/{name}" for n, name in zip(numbers, self._names, strict=True)]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._names)

    def __getitem__(self, index: int) -> Image.Image:
        """Reads one image, in mode RGB and its own size, or raises ``PatchError``."""
        number, offset, size = self._places[index].tolist()
        try:
            content = read_part(self.shards[number], offset, size)
        except OSError as error:
            raise PatchError(f"{self.name(index)}: {error.strerror or error}") from error
        if len(content) < size:
            raise PatchError(f"{self.name(index)}: the tar was cut off since it was opened")
        return read_image(io.BytesIO(content), self.name(index))

    def name(self, index: int) -> str:
        """Names one image for messages, by the tar and the member."""
        return f"{self.shards[int(self._places[index, 0])]} member {self._names[index]}"

    def close(self) -> None:
        """Does nothing: no tar stays open."""


def _check_one_image(shard: AnyPath, names: Sequence[str]) -> None:
    """Refuses samples of several images, because a mask is not an image to train on."""
    counts = Counter(map(_key, names))
    key, count = counts.most_common(1)[0] if counts else ("", 0)
    if count > 1:
        ends = [name.removeprefix(key) for name in names if _key(name) == key][:4]
        raise DataError(
            f"{shard}: sample {key!r} holds {count} images ({', '.join(ends)}, …); say which is meant by 'suffix' in a "
            f'manifest, such as "suffix": ".jpg"'
        )
