# tests/python/fake_hub.py
# A Hugging Face Hub on the loopback device, which can be told to misbehave.
# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face Hub on the loopback device, which can be told to misbehave.

It answers what huggingface_hub asks to list and to fetch the files of a model, in the
form of the real one: small files are served in place, large ones by a redirect to
another host.
"""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

LARGE = 2000  # bytes from which a file is kept apart, as with Git LFS
front_page = b""  # if set, the answer to everything


class Request(NamedTuple):
    """What a client asked for."""

    method: str
    path: str  # without the query
    range: str | None
    authorized: bool


class Repo:
    """Files at one commit, which the branch `main` is at."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.gated = False

    @property
    def commit(self) -> str:
        """A hash of the content, as git's is."""
        text = repr(sorted((k, digest(v)) for k, v in self.files.items()))
        return hashlib.sha1(text.encode()).hexdigest()

    def entry(self, name: str) -> dict[str, object]:
        """How the listings show a file."""
        data = self.files[name]
        entry: dict[str, object] = {"size": len(data), "oid": git_name(data)}
        if len(data) >= LARGE:
            size, sha = len(data), digest(data)
            entry["lfs"] = {"oid": sha, "sha256": sha, "size": size, "pointerSize": 130}
        return entry


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_name(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """The server's state: what there is, what went on, and what is to go wrong.

    Attributes
    ----------
    repos : dict of str to Repo
    log : list of Request
    sent : list of str
        Names of the files whose bytes were sent, in order.
    cuts : list of int
        Each breaks one answer of the large files' host off after so many bytes.
    short : int
        So many bytes are missing from the end of every large file that is sent.
    flipped : bool
        Whether the last byte of every large file is wrong.
    deaf_to_ranges : bool
        Whether large files are sent whole, whatever was asked for.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.repos: dict[str, Repo] = {}
        self.log: list[Request] = []
        self.sent: list[str] = []
        self.cuts: list[int] = []
        self.short = 0
        self.flipped = False
        self.deaf_to_ranges = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, name: str, source: Path | dict[str, bytes]) -> Repo:
        """Add a repository: a folder's files, or these."""
        if isinstance(source, Path):
            files = [path for path in source.rglob("*") if path.is_file()]
            source = {p.relative_to(source).as_posix(): p.read_bytes() for p in files}
        self.repos[name] = Repo(source)
        return self.repos[name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub  # set by `serve`

    def log_message(self, *_args: object) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        authorized = "authorization" in self.headers
        asked = Request(self.command, path, self.headers.get("Range"), authorized)
        self.hub.log.append(asked)
        if front_page:
            self._send(200, front_page, {"Content-Type": "text/html"})
            return
        if path.startswith("/cdn/"):
            self._large(path.removeprefix("/cdn/"))
            return
        api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models/").strip("/").split("/")
        repo = self.hub.repos.get(f"{owner}/{name}")
        if repo is None:
            self._fail(404, "RepoNotFound")
        elif repo.gated:
            self._fail(403, "GatedRepo")
        elif len(rest) > 1 and rest[1] not in ("main", "v1", repo.commit):
            self._fail(404, "RevisionNotFound")
        elif not api:
            self._file(repo, "/".join(rest[2:]))
        elif rest[:1] == ["tree"]:
            tree = [
                repo.entry(name) | {"path": name, "type": "file"} for name in repo.files
            ]
            self._json(tree)
        else:
            self._json(self._info(f"{owner}/{name}", repo))

    def _info(self, id: str, repo: Repo) -> dict[str, object]:
        siblings = []
        for name in repo.files:
            entry = repo.entry(name)
            siblings.append({"rfilename": name, "blobId": entry["oid"]} | entry)
        return {"id": id, "sha": repo.commit, "siblings": siblings}

    def _file(self, repo: Repo, name: str) -> None:
        if name not in repo.files:
            self._fail(404, "EntryNotFound")
            return
        data = repo.files[name]
        headers = {"X-Repo-Commit": repo.commit}
        if len(data) >= LARGE:
            sha = digest(data)
            headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(data))}
            headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{sha}"
            self._send(302, b"", headers)
        else:
            self._note(name)
            self._send(200, data, headers | {"ETag": f'"{git_name(data)}"'})

    def _large(self, sha: str) -> None:
        every = [
            item for repo in self.hub.repos.values() for item in repo.files.items()
        ]
        name, data = next(item for item in every if digest(item[1]) == sha)
        self._note(name)
        if self.hub.flipped:
            data = data[:-1] + bytes([data[-1] ^ 1])
        data = data[: len(data) - self.hub.short]
        start = self.headers.get("Range")
        headers = {"ETag": f'"{sha}"', "Accept-Ranges": "bytes"}
        if start is None or self.hub.deaf_to_ranges:
            self._send(200, data, headers, cut=True)
            return
        begin = int(start.removeprefix("bytes=").rstrip("-"))
        headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self._send(206, data[begin:], headers, cut=True)

    def _note(self, name: str) -> None:
        if self.command == "GET":
            self.hub.sent.append(name)

    def _json(self, value: object) -> None:
        self._send(
            200, json.dumps(value).encode(), {"Content-Type": "application/json"}
        )

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(
        self, status: int, data: bytes, headers: dict[str, str], *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut and self.hub.cuts:
            data = data[: self.hub.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(data)


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a server while the context lasts."""

    class Handler(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.hub = Hub(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Handler.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
