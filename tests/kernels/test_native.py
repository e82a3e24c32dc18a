"""How the C++ kernels come to be, and that without them everything still works."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from zoo.files import home
from zoo.kernels import build, explain_backend, native, neighborhood_attention, use_backend

RUN = (
    "import torch; from zoo.kernels import native, neighborhood_attention as attend;"
    "q = torch.ones(1, 7, 7, 1, 8); assert not native.why_not(), native.why_not();"
    "print(attend(q, q, q, 7).sum().item())"
)


ALONE = (
    "import importlib.util, json, sys; spec = importlib.util.spec_from_file_location('build', {!r});"
    "b = importlib.util.module_from_spec(spec); spec.loader.exec_module(b)\n"
)
BUILD = """
try:
    found, note = b.library()
    found.neighborhood_attention_forward
    print(json.dumps(["", note]))
except b.CannotBuildError as error:
    print(json.dumps([str(error), ""]))
"""
"""Prints why there is no library, and what is to be said of one; without PyTorch, which takes seconds to import."""
TELL = (
    "import warnings, torch; from zoo.kernels import explain_backend, native, neighborhood_attention as attend;"
    "q = torch.ones(1, 7, 7, 1, 8); caught = warnings.catch_warnings(record=True); told = caught.__enter__();"
    "warnings.simplefilter('always'); [attend(q, q, q, 7) for _ in range(2)]; caught.__exit__();"
    "print(attend(q, q, q, 7).sum().item()); print(explain_backend('neighborhood_attention', q));"
    "[print(w.message) for w in told]"
)
"""Prints a sum, the explanation, and every warning of two calls."""
NO_HOME = (
    "import os, pathlib, pwd;"
    "os.environ.pop('HOME', None); pwd.getpwuid = lambda user: {}[user];"  # as for a user id without a name
)
WORK = 'test "$1" = --version && exit; while [ $# -gt 1 ]; do shift; done; '


def _compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def _run(code: str, environment: dict[str, str]) -> list[str]:
    variables = {k: v for k, v in os.environ.items() if k not in ("ZOO_HOME", "CXX")} | environment
    run = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def _built(before: str = "", **environment: str) -> tuple[str, str]:
    """The reason and the note of a new process."""
    (line,) = _run(ALONE.format(build.__file__) + before + BUILD, environment)
    return tuple(json.loads(line))


def _told(before: str = "", **environment: str) -> tuple[str, list[str]]:
    """The explanation and the warnings of a new process, whose results must be right."""
    total, explanation, *warnings = _run(before + TELL, environment)
    assert float(total) == pytest.approx(392)
    return explanation, warnings


COMPILERS = {
    "none": ("", "no C++ compiler was found", "install one"),
    "fails": ('test "$1" = --version || { echo "no such flag" >&2; exit 1; }', "no such flag", "set CXX"),
    "fails at once": ("echo broken >&2; exit 1", "cannot be run: broken", "set CXX"),
    "hangs": ('test "$1" = --version || sleep 60', "timed out after 1 seconds", "set CXX"),
    "hangs at once": ("sleep 60", "timed out after 1 seconds", "set CXX"),
    "reads": ('test "$1" = --version || { cat; exit 1; }', "do not build", "set CXX"),
    "is killed": ('test "$1" = --version || kill -9 $$', "do not build", "set CXX"),
    "writes nothing": (WORK + ":", "No such file", "set CXX"),
    "writes junk": (WORK + 'echo junk > "$1"', "do not build", "set CXX"),
    "speaks Latin-1": ('test "$1" = --version || { printf "Men\\374 error\\n" >&2; exit 1; }', "error", "set CXX"),
    "is not a program": (None, "cannot be run", "set CXX"),
}


@pytest.mark.parametrize("case", COMPILERS)
def test_a_compiler_that(case: str, tmp_path: Path) -> None:
    script, reason, remedy = COMPILERS[case]
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    if case == "none":
        environment["PATH"] = "/nowhere"
    elif script is None:
        program = Path(_compiler(tmp_path, ""))
        program.write_bytes(b"\x7fELF of another machine")
        environment["CXX"] = str(program)
    else:
        environment["CXX"] = _compiler(tmp_path, script)
    brief = "b.LONGEST_BUILD = b.LONGEST_ANSWER = 1;" if "hangs" in case else ""
    found, _ = _built(brief, **environment)
    assert reason in found
    assert remedy in found
    left = [path.name for path in tmp_path.glob("**/*") if path.is_file()]
    assert left == ([] if case == "none" else ["compiler"])


@pytest.fixture
def quick(tmp_path: Path) -> dict[str, str]:
    """The environment of a compiler that gives what was built before: building takes half a minute."""
    assert not native.why_not()
    built = tmp_path / "built.so"
    shutil.copy(native._library()[0]._name, built)
    (tmp_path / "temporary").mkdir()
    return {"CXX": _compiler(tmp_path, WORK + f'cp {built} "$1"'), "TMPDIR": str(tmp_path / "temporary")}


@pytest.mark.parametrize("case", ["no home", "a home that is a file", "a home of the system", "a file below"])
def test_a_cache_that_cannot_be_written(case: str, tmp_path: Path, quick: dict[str, str]) -> None:
    cache = tmp_path / "cache"
    if case == "a file below":
        (cache / "zoo").mkdir(parents=True)
        (cache / "zoo" / "kernels").touch()
    else:
        cache.touch()
    place = "" if case == "no home" else "/proc" if case == "a home of the system" else str(cache)
    reason, note = _built(NO_HOME if case == "no home" else "", XDG_CACHE_HOME=place, **quick)
    assert not reason
    assert "set ZOO_HOME to a folder that can be written" in note
    assert not list((tmp_path / "temporary").iterdir())


def test_neither_cache_nor_temporary_folder(tmp_path: Path, quick: dict[str, str]) -> None:
    brief = "import tempfile; tempfile.mkdtemp = lambda *a, **k: open('/nowhere/at all');"
    reason, _ = _built(brief, XDG_CACHE_HOME="/proc", **quick)
    assert "/nowhere/at all" in reason
    assert "TMPDIR" in reason


@pytest.mark.parametrize("variable", ["ZOO_HOME", "XDG_CACHE_HOME"])
def test_a_cache_is_used(variable: str, tmp_path: Path, quick: dict[str, str]) -> None:
    home = tmp_path / "one more" / "home"
    quick[variable] = str(home)
    assert _built(**quick) == ("", "")
    (kept,) = (home if variable == "ZOO_HOME" else home / "zoo").glob("kernels/*")
    assert kept.suffix == ".so"
    Path(quick["CXX"]).write_text('#!/bin/sh\ntest "$1" = --version || exit 1\n')
    assert _built(**quick) == ("", "")


def test_it_is_the_cache_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in ({"ZOO_HOME": "~/zoos"}, {"XDG_CACHE_HOME": "/cache"}, {}):
        monkeypatch.delenv("ZOO_HOME", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert build.cache() == home() / "kernels"


@pytest.mark.parametrize("damage", ["cut off", "other bytes", "empty", "another machine", "a folder", "a pipe"])
def test_a_damaged_library_is_built_again(damage: str, tmp_path: Path, quick: dict[str, str]) -> None:
    quick["ZOO_HOME"] = str(tmp_path / "home")
    assert _built(**quick) == ("", "")
    (kept,) = (tmp_path / "home" / "kernels").iterdir()
    whole = kept.read_bytes()
    if damage in ("a folder", "a pipe"):
        kept.unlink()
        kept.mkdir() if damage == "a folder" else os.mkfifo(kept)
    else:
        half = len(whole) // 2
        machine = whole[:18] + b"\xf3\x00" + whole[20:]  # RISC-V
        kept.write_bytes(
            {"cut off": whole[:half], "other bytes": whole[:half] + bytes(half), "empty": b""}.get(damage, machine)
        )
    reason, note = _built(**quick)
    assert not reason
    if damage == "a folder":
        assert "set ZOO_HOME" in note
    else:
        assert "damaged" in note
        assert kept.read_bytes() == whole
        assert _built(**quick) == ("", "")


@pytest.mark.slow
def test_a_call_warns_once(quick: dict[str, str], tmp_path: Path) -> None:
    explanation, warnings = _told(NO_HOME, XDG_CACHE_HOME="", **quick)
    assert explanation == "neighborhood_attention: native, torch.float32 on the CPU"
    assert len(warnings) == 1
    assert "set ZOO_HOME" in warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize("packed", ["without sources", "in a zip file"])
def test_a_packed_application(packed: str, tmp_path: Path, quick: dict[str, str]) -> None:
    before = f"import pathlib, zoo.kernels.build as b; b.FOLDER = pathlib.Path({str(tmp_path)!r});"
    if packed == "in a zip file":
        with ZipFile(tmp_path / "app.zip", "w") as archive:
            for path in (build.FOLDER).glob("**/*.*"):
                if path.suffix in (".py", ".cpp", ".h"):
                    archive.write(path, Path("zoo/kernels") / path.relative_to(build.FOLDER))
            archive.writestr("zoo/__init__.py", "")
        before = f"import sys; sys.path.insert(0, {str(tmp_path / 'app.zip')!r});"
    explanation, warnings = _told(before, ZOO_HOME=str(tmp_path / "home"), **quick)
    assert "reference, the sources of the C++ kernels" in explanation
    assert len(warnings) == 1
    assert "--collect-data zoo.kernels" in warnings[0]


@pytest.mark.slow
def test_two_processes_build_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ZOO_HOME": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    assert [float(process.communicate()[0]) for process in both] == pytest.approx([392, 392])
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".so"]


def test_without_them_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 7, 8, 2, 8)
    with use_backend("native"):
        expected = neighborhood_attention(q, q, q, 3)
    monkeypatch.setattr(native, "_library", lambda: (None, "no C++ compiler was found"))
    line = explain_backend("neighborhood_attention", q)
    assert line == "neighborhood_attention: reference, no C++ compiler was found"
    torch.testing.assert_close(neighborhood_attention(q, q, q, 3), expected)
