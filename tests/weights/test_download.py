"""One file over HTTP from a server with every fault: the right file, or none and a clear error."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import zoo
from tests.weights.server import Fault, Server, serving
from zoo.weights import download as http
from zoo.weights.download import Expected, download

CONTENT = bytes(range(256)) * 4000
PATH = "/weights.pth"
RIGHT = Expected(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        found.files[PATH] = CONTENT
        yield found


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.02)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pth"


def left(target: Path) -> set[str]:
    """What lies beside the target, but the lock."""
    return {path.name for path in target.parent.iterdir()} - {target.name, f"{target.name}.lock"}


def fails(server: Server, target: Path, match: str, expected: Expected = RIGHT) -> None:
    with pytest.raises(zoo.CheckpointError, match=match):
        download(server.url + PATH, target, expected)
    assert not target.exists()


def test_a_file_arrives_once(server: Server, target: Path) -> None:
    for _ in range(2):
        assert download(server.url + PATH, target, RIGHT).read_bytes() == CONTENT
    assert len(server.seen) == 1
    assert not left(target)


@pytest.mark.parametrize("tenth", range(10))
def test_a_cut_file_is_continued(server: Server, target: Path, tenth: int) -> None:
    server.faults[PATH] = [Fault(keep=tenth / 10)]
    assert download(server.url + PATH, target, RIGHT).read_bytes() == CONTENT
    begun = len(CONTENT) * tenth // 10
    assert [wanted for *_, wanted in server.seen] == [None, f"bytes={begun}-" if begun else None]
    assert not left(target)


def test_a_file_that_is_cut_again_and_again_arrives(server: Server, target: Path) -> None:
    server.faults[PATH] = [Fault(keep=tenth / 10) for tenth in range(1, 10)]
    assert download(server.url + PATH, target, RIGHT).read_bytes() == CONTENT
    assert len(server.seen) == 10


def test_another_file_under_the_same_address_is_not_mixed_in(server: Server, target: Path) -> None:
    server.faults[PATH] = [Fault(keep=0.5), Fault(status=404)]
    fails(server, target, "HTTP 404", Expected())
    server.files[PATH] = CONTENT[::-1]
    assert download(server.url + PATH, target).read_bytes() == CONTENT[::-1]


def test_a_part_longer_than_the_file_is_dropped(server: Server, target: Path) -> None:
    server.faults[PATH] = [Fault(keep=0.5), Fault(status=404)]
    fails(server, target, "HTTP 404")
    with target.with_name("weights.pth.partial").open("ab") as file:
        file.write(CONTENT)
    assert download(server.url + PATH, target, RIGHT).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(server: Server, target: Path, status: int) -> None:
    server.faults[PATH] = [Fault(status=status)]
    fails(server, target, f"HTTP {status}")
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [416, 429, 500, 503])
def test_what_passes_is_tried_again(server: Server, target: Path, status: int) -> None:
    server.faults[PATH] = [Fault(status=status)] * 2
    assert download(server.url + PATH, target, RIGHT).read_bytes() == CONTENT
    assert len(server.seen) == 3


def test_what_does_not_pass_is_given_up(server: Server, target: Path) -> None:
    server.faults[PATH] = [Fault(status=500)] * 20
    fails(server, target, "given up after 5 attempts: HTTP 500")
    assert len(server.seen) == 5


def test_a_server_says_how_long_to_wait(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LONGEST_WAIT", 10.0)
    server.faults[PATH] = [Fault(status=429, headers={"Retry-After": "1"})]
    start = time.monotonic()
    download(server.url + PATH, target, RIGHT)
    assert 1.0 <= time.monotonic() - start < 5


def test_a_wrong_length_is_given_up(server: Server, target: Path) -> None:
    server.faults[PATH] = [Fault(longer=10)] * 20
    fails(server, target, "given up after 5 attempts")
    assert len(server.seen) > 1
    assert len(server.faults[PATH]) == 20 - len(server.seen)


@pytest.mark.parametrize("expected", [Expected(sha256="0" * 64), Expected(size=7)])
def test_a_wrong_file_is_not_kept(server: Server, target: Path, expected: Expected) -> None:
    fails(server, target, "not the file that was published", expected)
    assert not left(target)


def test_a_drip_is_not_waited_for(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PATIENCE", 0.3)
    server.faults[PATH] = [Fault(drip=0.02)]
    start = time.monotonic()
    assert download(server.url + PATH, target, RIGHT).read_bytes() == CONTENT
    assert time.monotonic() - start < 5
    assert len(server.seen) == 2
    begun = int(server.seen[1][2].removeprefix("bytes=").removesuffix("-"))
    assert 0 < begun < len(CONTENT)


def test_a_server_that_is_not_there(target: Path) -> None:
    with serving() as gone:
        pass
    fails(gone, target, "no connection")


def in_process(code: str, *arguments: object) -> subprocess.Popen:
    script = f"import sys\nfrom pathlib import Path\nfrom zoo.weights.download import download\n{code}"
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stderr=subprocess.PIPE, text=True)


FETCH = "download(sys.argv[1], Path(sys.argv[2]))"


def test_a_killed_process_leaves_what_the_next_continues(server: Server, target: Path) -> None:
    server.faults[PATH] = [Fault(drip=0.001)]
    process = in_process(FETCH, server.url + PATH, target)
    partial = target.with_name("weights.pth.partial")
    for _ in range(600):
        if partial.exists() and partial.stat().st_size > 100:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    begun = partial.stat().st_size
    assert 100 < begun < len(CONTENT)
    assert not target.exists()
    assert download(server.url + PATH, target, RIGHT).read_bytes() == CONTENT
    assert server.seen[-1][2] == f"bytes={begun}-"


def test_two_processes_fetch_one_file_once(server: Server, target: Path) -> None:
    server.files[PATH] = content = CONTENT * 20
    processes = [in_process(FETCH, server.url + PATH, target) for _ in range(2)]
    for process in processes:
        _, output = process.communicate(timeout=60)
        assert process.returncode == 0, output
    assert target.read_bytes() == content
    assert len(server.seen) == 1


def test_a_full_disk_is_an_error_for_people(server: Server, target: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    process = in_process(limit + FETCH, server.url + PATH, target)
    _, output = process.communicate(timeout=60)
    assert "CheckpointError" in output.splitlines()[-1]
    assert "cannot be written" in output
    assert not target.exists()
    assert download(server.url + PATH, target, RIGHT).read_bytes() == CONTENT
