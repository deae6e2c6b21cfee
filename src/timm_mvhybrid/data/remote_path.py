"""Files on other machines: URL → size, bytes and neighbours through fsspec, tried again; no credential in any message."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from ..runtime.digest import stream_fingerprint
from ..runtime.errors import DataError, MissingPackageError, RemoteError
from ..runtime.extras import require
from ..runtime.urls import has_scheme, public_url
from .remote_attempts import attempt

EXTRA = "remote"
_WEB = ("http", "https")
_BUFFER_BYTES = 1 << 20
_NUM_AT_ONCE = 16
# what tells one content from another, by the names that fsspec's file systems give it
_OF_CONTENT = (
    "etag content-md5 content_md5 digest md5hash crc32c checksum generation versionid version_id".split()
)
_OF_TIME = "last-modified lastmodified last_modified mtime updated created".split()
_T = TypeVar("_T")
# URLs of which this process knows that parts can be read
_IN_PARTS: set[str] = set()


def is_url(text: object) -> bool:
    """Says whether a text is a URL, such as ``s3://bucket/patches.tar``, and not a path of this machine."""
    return isinstance(text, RemotePath) or (isinstance(text, str) and has_scheme(text))


class RemotePath:
    """A file or folder on another machine, with the part of ``pathlib.Path`` that sources use.

    Its text is the URL without user, password and query, so that messages and files cannot hold them; it is also what
    tells one path from another when a run is started again, because signatures change. It can be pickled and used after
    a fork: file systems are fsspec's, of which each process has its own.

    Args:
        url: As fsspec takes it; credentials and options of stores are found as fsspec finds them (environment variables
            such as ``AWS_PROFILE`` and ``AWS_ENDPOINT_URL``, fsspec's configuration).

    Raises:
        DataError: The URL names no file, or chains several file systems.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._parts = urlsplit(url)
        if "::" in url or not self._parts.path.strip("/") or self._parts.scheme == "file":
            hint = (
                "give a path of this machine as such"
                if self._parts.scheme == "file"
                else "give the URL of a file"
            )
            raise DataError(f"{self}: cannot be streamed; {hint}, such as s3://bucket/folder/patches.tar")

    def __str__(self) -> str:
        """Returns the URL without what may be secret."""
        return public_url(self._url)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __truediv__(self, name: str) -> RemotePath:
        """Names a file below; what was signed for one file is of no use for another."""
        parts = self._parts._replace(path=f"{self._parts.path.rstrip('/')}/{name}")
        return RemotePath(urlunsplit(parts))

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which lists no folders."""
        return self._parts.scheme in _WEB

    @property
    def has_query(self) -> bool:
        """Whether the URL was signed for, or asks for, one file alone."""
        return bool(self._parts.query)

    @property
    def name(self) -> str:
        """The last part of the path, decoded where it is a web address."""
        last = PurePosixPath(self._parts.path).name
        return unquote(last) if self.is_web else last

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The suffix of the name."""
        return PurePosixPath(self.name).suffix

    def absolute(self) -> RemotePath:
        """Returns itself."""
        return self

    def resolve(self) -> RemotePath:
        """Returns itself."""
        return self

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Opens the file for reading, from any place of it.

        Raises:
            RemoteError: It is not there, or not in parts.
        """
        return io.BufferedReader(_RemoteStream(self), _BUFFER_BYTES)

    def info(self) -> dict[str, Any]:
        """Asks for what is known of the file: ``size``, ``type`` and what tells whether it changed.

        Raises:
            RemoteError: It is not there, or its machine does not answer.
        """
        return self.trying(lambda: dict(self._file_system().info(self._url)))

    def exists(self) -> bool:
        """Says whether there is such a file or folder.

        Raises:
            RemoteError: Its machine does not answer, or gives no permission.
        """
        try:
            self.info()
        except RemoteError as error:
            if error.is_missing:
                return False
            raise
        return True

    def is_file(self) -> bool:
        """Says whether it is a file that exists."""
        return self.exists() and self.info().get("type") == "file"

    def is_dir(self) -> bool:
        """Says whether it is a folder; a web server is never asked."""
        return not self.is_web and self.exists() and self.info().get("type") == "directory"

    def iterdir(self) -> list[RemotePath]:
        """Lists a folder, sorted."""
        return self._found(lambda: self._file_system().ls(self._url, detail=False))

    def glob_itself(self) -> list[RemotePath]:
        """Lists what fits to the URL as a pattern, sorted."""
        return self._found(lambda: self._file_system().glob(self._url))

    def _found(self, ask: Callable[[], Iterable[str]]) -> list[RemotePath]:
        fs = self._file_system()
        return [RemotePath(fs.unstrip_protocol(name)) for name in sorted(self.trying(lambda: list(ask())))]

    def expanded(self, expand: Callable[[str], list[str]]) -> list[RemotePath]:
        """Replaces a pattern by the files that it stands for."""
        return [RemotePath(url) for url in expand(self._url)]

    def read(self, start: int, size: int) -> bytes:
        """Reads a part in one request; fewer bytes where the file ends.

        Raises:
            RemoteError: The file is gone, or its machine does not answer or sends whole files only.
        """
        self._check_parts()
        content: bytes = self.trying(
            lambda: self._file_system().cat_file(self._url, start=start, end=start + size)
        )
        return content

    def _check_parts(self) -> None:
        """Makes sure that a web server sends parts of files; otherwise each patch would cost the whole file."""
        if not self.is_web or self._url in _IN_PARTS:
            return

        def read_second_byte() -> None:
            try:
                with self._file_system().open(self._url, "rb", cache_type="none", block_size=1) as stream:
                    stream.seek(1)
                    stream.read(1)
            except ValueError:
                raise RemoteError(
                    f"{self}: the web server sends whole files only (no range requests); download the file first"
                ) from None

        if self.size() > 1:
            self.trying(read_second_byte)
        _IN_PARTS.add(self._url)

    def fingerprint(self) -> str:
        """Tells this content from another by the size and the ETag or checksum that its machine states.

        Where it states none, samples stand for it, as in ``file_fingerprint``, whose value it then is.

        Returns:
            32 hexadecimal digits.
        """
        info = self.info()
        if _stated(info, _OF_CONTENT):
            stamp = " ".join([str(info.get("size")), *_stated(info, _OF_CONTENT)])
            return hashlib.sha256(stamp.encode()).hexdigest()[:32]
        with self.open() as stream:
            return stream_fingerprint(stream)

    def fingerprint_of_folder(self) -> str:
        """Joins sizes, ETags, checksums and times of all files below; empty where one has none of them."""
        found = self.trying(lambda: self._file_system().find(self._url, detail=True))
        root = self.trying(lambda: self._file_system()._strip_protocol(self._url))
        stamps = {name.removeprefix(root): _stamp(info) for name, info in found.items()}
        if not stamps or not all(stamps.values()):
            return ""
        return hashlib.sha256(repr(sorted(stamps.items())).encode()).hexdigest()[:32]

    def stamp(self) -> str:
        """Notes size, ETag, checksums and time of change; empty where only the size is known, or of a folder."""
        return _stamp(self.info())

    def size(self) -> int:
        """Asks for the size in bytes.

        Raises:
            RemoteError: It is not there, or its size is not known.
        """
        size = self.info().get("size")
        if size is None:
            raise RemoteError(f"{self}: its machine does not say how large it is; download it first")
        return int(size)

    def zarr_group(self) -> Any:
        """Opens a group of zarr for reading.

        Raises:
            RemoteError: Its machine does not answer.
        """
        zarr = require("zarr", EXTRA)
        self._file_system()
        return self.trying(lambda: zarr.open_group(self._url.rstrip("/"), mode="r"))

    def _file_system(self) -> Any:
        fsspec = require("fsspec", EXTRA)
        scheme = self._parts.scheme
        try:
            # kept by fsspec, a process each; a listing of before would hide a change, and what was signed stays as it is
            signed = {"encoded": True} if self.is_web and self.has_query else {}
            return fsspec.core.url_to_fs(self._url, use_listings_cache=False, **signed)[0]
        except ImportError as error:
            raise MissingPackageError(
                f"{self}: {scheme}:// needs a package that is not installed ({' '.join(str(error).split())}); "
                f"pip install 'timm-mvhybrid[{EXTRA}]' brings those for s3:// and https://"
            ) from None
        except ValueError as error:
            raise DataError(
                f"{self}: {scheme}:// is not known ({' '.join(str(error).split())}); take s3:// or https://, or download it first"
            ) from None

    def trying(self, call: Callable[[], _T]) -> _T:
        """Calls what asks another machine, again after a while where the error may pass.

        Raises:
            RemoteError: It failed for good, without credentials in its message.
            DataError: As the call.
        """
        userinfo = self._parts.netloc.rpartition("@")[0]
        secrets = (self._parts.query, userinfo, self._parts.password or "")
        return attempt(call, str(self), secrets, hides_causes=self.is_web)


AnyPath = Path | RemotePath


def _stated(info: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return sorted(
        f"{name.lower()}={value}" for name, value in info.items() if name.lower() in names and value
    )


def _stamp(info: Mapping[str, Any]) -> str:
    stated = _stated(info, (*_OF_CONTENT, *_OF_TIME))
    return " ".join([str(info.get("size")), *stated]) if stated and info.get("type") == "file" else ""


class _RemoteStream(io.RawIOBase):
    """A remote file as bytes from any place."""

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self._size = path.size()
        self._position = 0

    def readable(self) -> bool:
        """Returns that it is."""
        return True

    def seekable(self) -> bool:
        """Returns that it is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def tell(self) -> int:
        """Returns the place."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Reads as much as is left."""
        size = max(min(len(buffer), self._size - self._position), 0)
        content = self._path.read(self._position, size) if size else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def as_path(path: str | AnyPath) -> AnyPath:
    """Tells URLs from paths of this machine."""
    if isinstance(path, RemotePath):
        return path
    return RemotePath(path) if isinstance(path, str) and is_url(path) else Path(path)


def read_part(path: AnyPath, start: int, size: int) -> bytes:
    """Reads bytes from a place of a file; fewer where it ends."""
    if isinstance(path, RemotePath):
        return path.read(start, size)
    with path.open("rb") as stream:
        stream.seek(start)
        return stream.read(size)


def size_of(path: AnyPath) -> int | None:
    """Looks up the size of a file in bytes; None for a folder.

    Raises:
        RemoteError: Another machine does not answer.
    """
    if isinstance(path, RemotePath):
        # a pattern of tars is no file
        size = path.info().get("size") if path.exists() else None
        return None if size is None else int(size)
    return path.stat().st_size if path.is_file() else None


def ask_together(ask: Callable[[RemotePath], _T], paths: Sequence[RemotePath]) -> list[_T]:
    """Asks for many files at once, because each answer takes the way there and back."""
    if not paths:
        return []
    with ThreadPoolExecutor(min(_NUM_AT_ONCE, len(paths))) as pool:
        return list(pool.map(ask, paths))
