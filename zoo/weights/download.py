"""Downloads a file over HTTP: resumed, retried, verified, and moved into place only when complete."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock

from zoo.errors import CheckpointError

PATIENCE = 30.0
"""Seconds without a byte, or below SLOWEST, after which a connection is closed and reopened."""
SLOWEST = 1024
"""Bytes a second."""
ATTEMPTS = 5
"""Give up after so many connections in a row without progress."""
LONGEST_WAIT = 60.0
"""Seconds between two connections, even if the server asks for more."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may be temporary."""


@dataclass(frozen=True)
class Expected:
    """What is known about a file before it is downloaded."""

    sha256: str | None = None
    size: int | None = None


class _Interrupted(Exception):
    """A connection that did not deliver the whole file; `wait` is the delay requested by the server, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def download(url: str, target: Path, expected: Expected = Expected()) -> Path:
    """Download `url` to `target` unless it exists; if another process is doing the same, wait for it.

    The download is kept next to the target as `.partial` until it is complete and verified. What a killed process has
    left there is resumed if the server still has the same file.

    Raises:
        CheckpointError: if the file cannot be downloaded, or is not the expected one; the target is then not written.
    """
    with _disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                _fetch(url, target, expected)
    return target


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check(path: Path, expected: Expected, what: str) -> None:
    """Raise CheckpointError unless a file has the expected size and checksum."""
    size = path.stat().st_size
    if expected.size not in (None, size):
        raise CheckpointError(f"{what}: {size} bytes, expected {expected.size}: not the file that was published")
    if expected.sha256 is not None and (found := sha256_of(path)) != expected.sha256:
        raise CheckpointError(f"{what}: sha256 {found}, expected {expected.sha256}: not the file that was published")


def _fetch(url: str, target: Path, expected: Expected) -> None:
    partial = _Partial(target.with_name(f"{target.name}.partial"))
    failures, most = 0, partial.size
    with _progress(target.name) as show:
        while True:
            try:
                _continue(url, partial, show)
                break
            except _Interrupted as interruption:
                failures = 0 if partial.size > most else failures + 1
                most = max(most, partial.size)
                if failures == ATTEMPTS:
                    raise CheckpointError(f"{url}: given up after {ATTEMPTS} attempts: {interruption}") from None
                wait = 2.0**failures if interruption.wait is None else interruption.wait
                time.sleep(min(wait, LONGEST_WAIT))
    try:
        check(partial.path, expected, url)
    except CheckpointError:
        partial.discard()
        raise
    os.replace(partial.path, target)
    partial.discard()


class _Partial:
    """The downloaded part of a file, with the server's identifier of this version."""

    def __init__(self, path: Path) -> None:
        self.path, self.note = path, path.with_name(f"{path.name}.json")

    @property
    def size(self) -> int:
        """The number of bytes downloaded."""
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self, url: str) -> str | None:
        """The validator of the downloaded part; None if it is from another address or an unknown version."""
        with suppress(OSError, ValueError):
            note = json.loads(self.note.read_text())
            return note["version"] if note["url"] == url and self.size else None
        return None

    def begin(self, url: str, version: str | None) -> None:
        """Record the file to which the following bytes belong."""
        self.note.write_text(json.dumps({"url": url, "version": version}))

    def discard(self) -> None:
        """Remove the part."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _continue(url: str, partial: _Partial, show) -> None:
    """One connection: append what is missing, or start over if the server has another file or no range support."""
    version = partial.version(url)
    headers = {"User-Agent": "zoo", "Accept-Encoding": "identity"}
    if version is not None:
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": version}
    with _opened(url, headers, partial) as response:
        resumed = response.status == 206
        start = partial.size if resumed else 0
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            partial.discard()
            raise _Interrupted(f"the server answered with {response.headers.get('Content-Range')!r}")
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        partial.begin(url, _version(response.headers))
        with partial.path.open("ab" if resumed else "wb") as file:
            for block in _blocks(response):
                file.write(block)
                start += len(block)
                show(start, total)
    if total is not None and start != total:
        raise _Interrupted(f"the connection ended at byte {start} of {total}")


def _version(headers: Message) -> str | None:
    """A validator for which `If-Range` is exact: a strong ETag, or the date of the last change."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


@contextmanager
def _opened(url: str, headers: dict[str, str], partial: _Partial) -> Iterator[HTTPResponse]:
    """The response to a request. Temporary errors are raised as interruptions, others as errors for the user."""
    try:
        with urlopen(Request(url, headers=headers), timeout=PATIENCE) as response:
            yield response
    except HTTPError as error:
        if error.code == 416:  # the part is longer than the file, so it belongs to another one
            partial.discard()
            raise _Interrupted("the server has another file than the one that was begun") from None
        if error.code in PASSING:
            raise _Interrupted(f"HTTP {error.code} {error.reason}", _retry_after(error.headers)) from None
        raise CheckpointError(f"{url}: the server answered HTTP {error.code} {error.reason}") from None
    except URLError as error:
        raise _Interrupted(f"no connection: {error.reason}") from None
    except (HTTPException, ConnectionError, TimeoutError, SSLError) as error:
        raise _Interrupted(f"the connection broke: {type(error).__name__}: {error}") from None


def _retry_after(headers: Message) -> float | None:
    with suppress(TypeError, ValueError):
        return max(0.0, float(headers["Retry-After"]))
    return None


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    """The data as it arrives.

    Raises:
        TimeoutError: if it arrives too slowly.
    """
    since, received = time.monotonic(), 0
    while block := response.read1(2**18):
        yield block
        received += len(block)
        elapsed = time.monotonic() - since
        if elapsed > PATIENCE:
            if received < SLOWEST * elapsed:
                raise TimeoutError(f"{received} bytes in {elapsed:.0f} seconds")
            since, received = time.monotonic(), 0


@contextmanager
def _progress(name: str):
    """A function of bytes and total that shows progress on a terminal."""
    from rich import progress as rich  # not while a model is made that needs no download

    parts = rich.TextColumn(name), rich.BarColumn(), rich.DownloadColumn()
    columns = *parts, rich.TransferSpeedColumn(), rich.TimeRemainingColumn()
    with rich.Progress(*columns, transient=True, disable=not os.isatty(2)) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _disk(target: Path) -> Iterator[None]:
    """Raise file system errors as errors for the user."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written: {error.strerror or error}. Free some space, or set ZOO_HOME to another place"
        ) from error
