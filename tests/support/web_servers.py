"""Servers of this machine alone: a web server that sends parts of files, and as much of S3 as reading takes."""

import hashlib
import threading
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Says nothing."""

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _send(self, status, content=b"", with_body=True, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(headers.pop("length", len(content))))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _answer(self, with_body):
        site = self.server.site
        parts = urlsplit(self.path)
        path = unquote(parts.path).lstrip("/")
        with site.lock:
            site.requests.append((self.command, self.path, dict(self.headers)))
            status = site.failures.pop(0) if site.failures else None
        if status == "cut":
            self.close_connection = True
            self.connection.close()
            return
        if status is not None:
            self._send(status, b"no", with_body)
            return
        if site.query is not None and parts.query != site.query:
            self._send(403, b"unsigned", with_body)
            return
        if path in site.redirects:
            self._send(302, b"", with_body, Location=site.redirects[path])
            return
        if site.lists and "list-type" in parts.query:
            self._send(200, self._listing(path.strip("/"), parse_qs(parts.query)), with_body)
            return
        file = site.folder / path
        if site.lists and file.is_dir() and "/" not in path:
            self._send(200, b"", with_body)
            return
        if not file.is_file():
            self._send(
                404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>" * site.lists, with_body
            )
            return
        self._send_file(file, with_body)

    def _send_file(self, file, with_body):
        site, content = self.server.site, file.read_bytes()
        headers = {"Last_Modified": formatdate(file.stat().st_mtime, usegmt=True)}
        if site.etags:
            headers["ETag"] = f'"{hashlib.md5(content).hexdigest()}"'
        asked = self.headers.get("Range")
        if asked is None or not site.ranges:
            self._send(200, content, with_body, **headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = int(last) + 1 if first and last else len(content)
        if start >= len(content):
            self._send(416, b"", with_body)
            return
        stop = min(stop, len(content))
        headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(206, content[start:stop], with_body, **headers)

    def _listing(self, bucket, query):
        """ListObjectsV2: what begins with a prefix, down to a delimiter."""
        root = self.server.site.folder / bucket
        prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
        found, folders = [], set()
        for file in sorted(file for file in root.rglob("*") if file.is_file()):
            key = file.relative_to(root).as_posix()
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            digest = hashlib.md5(file.read_bytes()).hexdigest()
            found.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-30T00:00:00.000Z</LastModified>"
                f'<ETag>"{digest}"</ETag><Size>{file.stat().st_size}</Size></Contents>'
            )
        most = int(query.get("max-keys", ["1000"])[0])
        found += [
            f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            for folder in sorted(folders)
        ]
        found = found[:most]
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
            + "".join(found)
            + "</ListBucketResult>"
        ).encode()


class Site:
    """What a server has, and how it behaves.

    Attributes:
        folder: Its files.
        url: Where it is, without a slash at the end.
        requests: Method, path and headers of each request so far.
        failures: What the next requests get instead of an answer: a status each, or "cut" for a closed connection.
        redirects: Path → where it is.
        query: What a URL must end with, as a signed one; None for nothing.
        ranges: Whether it sends parts of files.
        etags: Whether it tells contents apart.
        lists: Whether it answers as S3 does, with buckets as folders.
    """

    def __init__(self, folder: Path, port: int, lists: bool):
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self.lock = threading.Lock()
        self.requests, self.failures, self.redirects = [], [], {}
        self.query, self.ranges, self.etags, self.lists = None, True, True, lists


@contextmanager
def serving(folder: Path, lists: bool = False):
    """Serves a folder on a port of this machine while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.site = Site(folder, server.server_address[1], lists)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
