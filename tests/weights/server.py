"""A local web server with the faults of real ones, that also speaks the Hub's protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

HUB_PATH = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Fault:
    """What goes wrong with one answer: a status, an end before the end, a wrong length, a drip of bytes."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    keep: float | None = None
    longer: int = 0
    drip: float = 0.0


class Server(ThreadingHTTPServer):
    """Files by path, faults by path that are used up one an answer, and the requests seen.

    Below /owner/name/resolve/revision/ a file is found as in the Hub: asked for its head the server tells commit,
    checksum and size, and sends the client on to where the file lies.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.seen: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def elsewhere(self) -> str:
        """The same server by another name, as the Hub's files lie on other machines than the Hub."""
        return f"http://localhost:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        """The part of the Hub's protocol by which a client makes a repository and commits small files to it."""
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.seen.append(("POST", path, self.headers.get("Authorization")))
        commit = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", path)
        if path == "/api/repos/create":
            self._say({"url": f"{self.server.url}/{json.loads(content)['organization']}/{json.loads(content)['name']}"})
        elif path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        elif commit and commit[2] == "preupload":
            files = [file["path"] for file in json.loads(content)["files"]]
            self._say({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]})
        elif commit:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    name = f"/{commit[1]}/resolve/main/{line['value']['path']}"
                    self.server.files[name] = base64.b64decode(line["value"]["content"])
            self._say({"commitOid": COMMIT, "commitUrl": f"{self.server.url}/{commit[1]}/commit/{COMMIT}"})
        else:
            self._refuse(404, {})

    def _say(self, answer: dict) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.seen.append((self.command, path, self.headers.get("Range")))
        faults = self.server.faults.get(path, [])
        fault = faults.pop(0) if faults and (body or HUB_PATH.fullmatch(path)) else Fault()
        if fault.status is not None:
            return self._refuse(fault.status, fault.headers)
        content = self.server.files.get(path)
        if content is None:
            missing = "EntryNotFound" if HUB_PATH.fullmatch(path) else ""
            return self._refuse(404, {"X-Error-Code": missing} if missing else {})
        checksum = hashlib.sha256(content).hexdigest()
        if HUB_PATH.fullmatch(path):
            blob = f"/blobs/{checksum}"
            self.server.files[blob] = content
            if path in self.server.faults:
                self.server.faults[blob] = self.server.faults[path]
            linked = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{checksum}"', "X-Linked-Size": str(len(content))}
            return self._refuse(302, {**linked, "ETag": f'"{checksum}"', "Location": self.server.elsewhere + blob})
        return self._send(content, f'"{checksum}"', fault, body)

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, content: bytes, etag: str, fault: Fault, body: bool) -> None:
        start, wanted = 0, self.headers.get("Range")
        if wanted and self.headers.get("If-Range") in (None, etag):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                return self._refuse(416, {"Content-Range": f"bytes */{len(content)}"})
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start + fault.longer))
        self.send_header("ETag", etag)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            end = len(content) if fault.keep is None else int(len(content) * fault.keep)
            self._write(content[start:end], fault.drip)
            self.close_connection = fault.keep is not None or fault.longer > 0
        return None

    def _write(self, content: bytes, drip: float) -> None:
        if not drip:
            self.wfile.write(content)
            return
        for i in range(len(content)):
            self.wfile.write(content[i : i + 1])
            self.wfile.flush()
            time.sleep(drip)


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs while the block does."""
    server = Server()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
