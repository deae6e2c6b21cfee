"""A Hub of our own on 127.0.0.1: repositories in memory, the requests that huggingface_hub makes, faults on demand.

It speaks what uploads and downloads need: create, preupload, LFS batch and PUT, commit (ndjson), tag, and resolve with
HEAD, GET and Range. What huggingface_hub never asks of it here is not there.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writersToken"
READ_TOKEN = "hf_readersToken"
LFS_THRESHOLD = 10_000


@dataclass
class Repository:
    private: bool = False
    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)

    def files(self, revision):
        commit = self.refs.get(revision, revision)
        return commit, self.commits.get(commit)

    def commit(self, files):
        parent, before = self.files("main")
        content = {**(before or {}), **files}
        listing = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(content.items())]
        name = hashlib.sha1(json.dumps([parent, len(self.commits), listing]).encode()).hexdigest()
        self.commits[name] = content
        self.refs["main"] = name
        return name


@dataclass
class Fault:
    """Answers matching requests wrongly: with a status, a dropped connection behind some bytes, or a flipped bit."""

    method: str
    path: str
    status: int = 0
    drop_after: int = -1
    flip: int | None = None
    times: int = 1_000_000
    body: str = "injected"
    code: str = ""


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}
        self.blobs = {}
        self.faults = []
        self.requests = []
        self.is_open = True
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def paused(self):
        """Refuses connections for a while, those that are kept alive too."""
        self.is_open = False
        self.__exit__()
        try:
            yield
        finally:
            self.socket = socket.socket(self.address_family, self.socket_type)
            self.server_bind()
            self.server_activate()
            self.is_open = True
            self.__enter__()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A dropped connection is meant."""

    def seen(self, method, pattern):
        """Requests of a method whose path matches, as (path, headers)."""
        return [
            (path, headers)
            for verb, path, headers in self.requests
            if verb == method and re.search(pattern, path)
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.route("HEAD")

    def do_GET(self):
        self.route("GET")

    def do_POST(self):
        self.route("POST")

    def do_PUT(self):
        self.route("PUT")

    def route(self, method):
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.server.is_open:
            self.close_connection = True
            return None
        with self.server.lock:
            self.server.requests.append((method, path, dict(self.headers)))
            self.fault = next(
                (
                    fault
                    for fault in self.server.faults
                    if fault.method == method and re.search(fault.path, path) and fault.times > 0
                ),
                None,
            )
            if self.fault:
                self.fault.times -= 1
            if self.fault and self.fault.status:
                code = {"X-Error-Code": self.fault.code} if self.fault.code else {}
                return self.answer(self.fault.status, {"error": self.fault.body}, **code)
            for verb, pattern, act in ROUTES:
                match = re.fullmatch(pattern, path)
                if method in verb.split() and match:
                    return act(self, *match.groups())
        return self.answer(404, {"error": f"{method} {path} is not served"})

    def token(self):
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def answer(self, status, value=None, **headers):
        content = b"" if value is None else json.dumps(value).encode()
        if status >= 400 and "X-Error-Message" not in headers:
            headers["X-Error-Message"] = (value or {}).get("error", "")
        self.send(status, content, **{"Content-Type": "application/json", **headers})

    def send(self, status, content, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.drop_after >= 0:
            self.wfile.write(content[: self.fault.drop_after])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if self.fault and self.fault.flip is not None:
            content = bytearray(content)
            content[self.fault.flip] ^= 1
        self.wfile.write(content)

    def readable(self, repo_id):
        """Finds a repository, or answers what the Hub answers to one who may not see it."""
        repository = self.server.repositories.get(repo_id)
        known = self.token() in (TOKEN, READ_TOKEN)
        if self.token() and not known:
            self.answer(401, {"error": "Invalid credentials in Authorization header"})
            return None
        if repository is None or (repository.private and not known):
            code = 404 if known else 401
            self.answer(code, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def writable(self, repo_id):
        if self.token() == READ_TOKEN:
            self.answer(403, {"error": f"Forbidden: you may not write, {self.token()}"})
            return None
        return self.readable(repo_id)

    def create(self):
        if self.token() != TOKEN:
            return self.answer(403 if self.token() == READ_TOKEN else 401, {"error": "Forbidden"})
        wanted = json.loads(self.body)
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        # huggingface_hub 1 says private, and 2 visibility
        is_private = wanted.get("private") is True or wanted.get("visibility") == "private"
        address = {"url": f"{self.server.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.server.repositories:
            return self.answer(409, {"error": "You already created this model repo", **address})
        self.server.repositories[repo_id] = Repository(private=is_private)
        return self.answer(200, address)

    def preupload(self, repo_id, revision):
        repository = self.writable(repo_id)
        if repository is None:
            return None
        _, held = repository.files(revision)
        files = []
        for wanted in json.loads(self.body)["files"]:
            large = wanted["size"] > LFS_THRESHOLD
            entry = {
                "path": wanted["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
            }
            if wanted["path"] in (held or {}):
                data = held[wanted["path"]]
                entry["oid"] = hashlib.sha256(data).hexdigest() if large else git_sha1(data)
            files.append(entry)
        return self.answer(200, {"files": files})

    def lfs_batch(self, repo_id):
        if self.writable(repo_id) is None:
            return None
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.blobs:
                entry["actions"] = {
                    "upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.server.url}/lfs-verify"},
                }
            objects.append(entry)
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer(400, {"error": "the content is not what was announced"})
        self.server.blobs[oid] = self.body
        return self.answer(200, {})

    def lfs_verify(self):
        wanted = json.loads(self.body)
        held = self.server.blobs.get(wanted["oid"])
        return self.answer(200 if held is not None and len(held) == wanted["size"] else 404, {})

    def commit(self, repo_id, revision):
        repository = self.writable(repo_id)
        if repository is None:
            return None
        files = {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        name = repository.commit(files)
        url = f"{self.server.url}/{repo_id}/commit/{name}"
        return self.answer(
            200,
            {"success": True, "commitOid": name, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None},
        )

    def tag(self, repo_id, revision):
        repository = self.writable(repo_id)
        if repository is None:
            return None
        name = json.loads(self.body)["tag"]
        if name in repository.refs:
            return self.answer(409, {"error": "the tag exists"})
        repository.refs[name], _ = repository.files(revision)
        return self.answer(200, {})

    def resolve(self, repo_id, revision, name):
        repository = self.readable(repo_id)
        if repository is None:
            return None
        commit, files = repository.files(revision)
        if files is None:
            code = "EntryNotFound" if revision == "main" else "RevisionNotFound"
            return self.answer(404, {"error": "not there"}, **{"X-Error-Code": code})
        if name not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            return self.answer(404, {"error": "not there"}, **headers)
        data = files[name]
        large = len(data) > LFS_THRESHOLD
        etag = hashlib.sha256(data).hexdigest() if large else git_sha1(data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": len(data)}
        status = 200
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span:
            first, last = int(span[1]), int(span[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            status, data = 206, data[first : last + 1]
        return self.send(status, data, **headers)

    def validate_yaml(self):
        return self.answer(200, {"errors": [], "warnings": []})


_ID = r"([\w.-]+/[\w.-]+?)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"/api/models/{_ID}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"/api/models/{_ID}/commit/([^/]+)", Handler.commit),
    ("POST", rf"/api/models/{_ID}/tag/([^/]+)", Handler.tag),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(\w+)", Handler.lfs_put),
    ("POST", r"/lfs-verify", Handler.lfs_verify),
    ("HEAD GET", rf"/{_ID}/resolve/([^/]+)/(.+)", Handler.resolve),
]
