"""Builds the C++ kernels for the local processor once, at their first use, and caches them for the user.

The sources use neither Python's nor PyTorch's headers, only pointers, so a build takes seconds and works with every
version of both. `torch.utils.cpp_extension` is not used, because a process killed during a build leaves a lock behind,
on which all later processes wait forever.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
LONGEST_BUILD = 300
LONGEST_ANSWER = 20
"""Seconds; the latter is for asking the compiler for its version."""
DIGEST = hashlib.sha256().digest_size
"""Bytes at the end of a cached library that reveal damage: loading a damaged file can end the process."""


class CannotBuildError(Exception):
    """Why there is no library, and what to do about it."""


def library() -> tuple[ctypes.CDLL, str]:
    """The library of all operations, and a note for the user about its location, usually empty.

    Raises:
        CannotBuildError: if there is none.
    """
    compiler, units = _compiler(), _units()
    kept, note = _kept(_key(compiler, units))
    if kept and os.path.lexists(kept):
        with suppress(OSError):
            return _load(kept), ""
        note = f"{kept} was damaged, so the C++ kernels are built once more"
    for target in [kept, None] if kept else [None]:
        try:
            with _work_folder(target.parent if target else None) as folder:
                built = _build(compiler, list(units), folder)
                loaded = _load(built)  # a library that does not load must not be cached
                if target:
                    os.replace(built, target)  # another process may do the same: both files work
                return loaded, note
        except (OSError, subprocess.CalledProcessError) as error:
            failure = error
            if target:
                note = _not_kept(error, f" in {target.parent}")
    raise CannotBuildError(
        f"the C++ kernels do not build with {shlex.join(compiler)}: {_first_line(failure)}; set CXX to a compiler of "
        "C++17 that knows OpenMP, as GCC does, and TMPDIR to a folder that can be written"
    )


def identity() -> str:
    """What a library depends on, as a file name: sources, compiler, processor.

    Raises:
        CannotBuildError: if there is no compiler, or there are no sources.
    """
    return _key(_compiler(), _units())


def cache() -> Path:
    """The folder of built libraries: under `ZOO_HOME`, else in the user's cache.

    Raises:
        RuntimeError: if the user has no home.
    """
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("ZOO_HOME") or f"{folder}/zoo").expanduser() / "kernels"


def _kept(key: str) -> tuple[Path | None, str]:
    """Where the library of a key is cached, or a note that it is not."""
    try:
        return cache().absolute() / f"{key}.so", ""
    except (RuntimeError, OSError) as error:
        return None, _not_kept(error)


def _key(compiler: list[str], units: dict[Path, str]) -> str:
    key = "\0".join([*units.values(), *FLAGS, *compiler, _version(compiler), _processor()])
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def _not_kept(error: Exception, where: str = "") -> str:
    return (
        f"the C++ kernels cannot be kept{where} ({_first_line(error)}), so every process builds them anew; "
        "set ZOO_HOME to a folder that can be written"
    )


@contextmanager
def _work_folder(place: Path | None):
    """A private temporary folder on the disk of `place`; a loaded library no longer needs its file."""
    if place:
        place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="zoo-", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _compiler() -> list[str]:
    """The compiler as the start of a command: CXX may also contain options or a launcher."""
    try:
        asked = shlex.split(os.environ.get("CXX", ""))
    except ValueError:
        asked = []
    for command in (asked, ["c++"], ["g++"], ["clang++"]):
        if found := command and shutil.which(command[0]):
            return [found, *command[1:]]
    raise CannotBuildError(
        "no C++ compiler was found (CXX, c++, g++, clang++); install one, such as g++, or set CXX to its path"
    )


def _units() -> dict[Path, str]:
    """The text of every source, followed by that of all headers."""
    try:
        sources = {path: path.read_text("utf-8") for path in sorted(FOLDER.glob("*/native.cpp"))}
        headers = {path: path.read_text("utf-8") for path in sorted(FOLDER.glob("**/*.h"))}
    except OSError as error:
        raise CannotBuildError(f"the sources of the C++ kernels cannot be read ({error}); install zoo anew") from error
    if not sources or not headers:
        raise CannotBuildError(
            f"the sources of the C++ kernels (*.cpp, *.h) are not in {FOLDER}; a packed application needs them as "
            "files, such as by PyInstaller's --collect-data zoo.kernels"
        )
    return sources | headers


def _version(compiler: list[str]) -> str:
    try:
        return _run([*compiler, "--version"], LONGEST_ANSWER)
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotBuildError(
            f"the C++ compiler {shlex.join(compiler)} cannot be run: {_first_line(error)}; set CXX to one that can"
        ) from error


def _build(compiler: list[str], sources: list[Path], folder: Path) -> Path:
    """The library with its digest at the end."""
    unit, built = folder / "all.cpp", folder / "all.so"
    lines = [f'#include "{path}"\n' for path in sources if path.suffix == ".cpp"]
    unit.write_text("".join(lines), "utf-8")
    try:
        _run([*compiler, *FLAGS, f"-I{FOLDER}", str(unit), "-o", str(built)], LONGEST_BUILD, TMPDIR=str(folder))
    except subprocess.TimeoutExpired as error:
        raise CannotBuildError(
            f"the C++ kernels do not build with {shlex.join(compiler)}: timed out after {LONGEST_BUILD} seconds; set "
            "CXX to another compiler"
        ) from error
    content = built.read_bytes()
    built.write_bytes(content + hashlib.sha256(content).digest())
    return built


def _load(path: Path) -> ctypes.CDLL:
    if not path.is_file():  # reading a pipe would wait for ever
        raise OSError(f"{path} is no file")
    content = path.read_bytes()
    if hashlib.sha256(content[:-DIGEST]).digest() != content[-DIGEST:]:
        raise OSError(f"{path} is damaged")
    return ctypes.CDLL(str(path))


def _run(command: list[str], seconds: float, **environment: str) -> str:
    """The output of a command. Its child processes are ended with it, because they would keep the pipes open."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=os.environ | environment,
        start_new_session=True,
    )
    try:
        output, complaint = process.communicate(timeout=seconds)
    except BaseException:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output, complaint)
    return output


def _first_line(error: Exception) -> str:
    output = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return next((line for line in output if "error" in line), (output or [type(error).__name__])[0])


def _processor() -> str:
    """What "native" means here: the processor's instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
