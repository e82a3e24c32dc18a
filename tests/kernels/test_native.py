"""How the C++ kernels come to be, and that without them everything still works."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo.kernels import explain_backend, native, neighborhood_attention, use_backend

RUN = (
    "import torch; from zoo.kernels import native, neighborhood_attention as attend;"
    "q = torch.ones(1, 7, 7, 1, 8); assert not native.why_not(), native.why_not();"
    "print(attend(q, q, q, 7).sum().item())"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def _reason() -> str:
    library, reason = native._library.__wrapped__()
    assert library is None
    return reason


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert _reason() == "no C++ compiler was found (CXX, c++, g++, clang++)"


def test_a_compiler_that_fails(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", _compiler(tmp_path, 'test "$1" = --version || { echo "no such flag" >&2; exit 1; }'))
    assert _reason().endswith("compiler: no such flag")
    assert not list(cache.glob("**/*.so"))


def test_a_compiler_that_never_ends(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LONGEST_BUILD", 1)
    monkeypatch.setenv("CXX", _compiler(tmp_path, 'test "$1" = --version || exec sleep 60'))
    assert "timed out after 1 seconds" in _reason()


def test_a_compiler_that_writes_no_library(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'test "$1" = --version && exit; while [ $# -gt 1 ]; do shift; done; echo junk > "$1"'
    monkeypatch.setenv("CXX", _compiler(tmp_path, script))
    assert "do not build with" in _reason()
    assert not list(cache.glob("**/*.so"))


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert "/dev/null" in _reason()


@pytest.mark.slow
def test_two_processes_build_at_once(cache: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    assert [float(process.communicate()[0]) for process in both] == pytest.approx([392, 392])
    assert [path.suffix for path in (cache / "zoo" / "kernels").iterdir()] == [".so"]


def test_without_them_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 7, 8, 2, 8)
    with use_backend("native"):
        expected = neighborhood_attention(q, q, q, 3)
    monkeypatch.setattr(native, "_library", lambda: (None, "no C++ compiler was found"))
    line = explain_backend("neighborhood_attention", q)
    assert line == "neighborhood_attention: reference, no C++ compiler was found"
    torch.testing.assert_close(neighborhood_attention(q, q, q, 3), expected)
