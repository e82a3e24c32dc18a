"""Builds the C++ kernels for the processor at hand, once, at their first use; without a compiler they are just absent.

The sources use neither Python's nor PyTorch's headers: they see pointers, so a build takes seconds and serves every
version of both. `torch.utils.cpp_extension` would do, but a process killed while it builds leaves a lock behind on
which every later one waits for ever.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
LONGEST_BUILD = 300
"""Seconds."""


@torch.compiler.assume_constant_result
def why_not() -> str:
    """The reason why there are no C++ kernels on this machine; empty if there are."""
    return _library()[1]


def call(function: str, *arguments: object) -> None:
    """Call a C++ function: tensors become the pointers to their data, None a null pointer, the rest numbers.

    Raises:
        ValueError: if a tensor is not what C++ reads: single precision or 64-bit integers in the memory of this
            process, maps (five axes) with their channels side by side, everything else contiguous.
    """
    kernels, _ = _library()
    getattr(kernels, function)(*(_as_c(argument) for argument in arguments), ctypes.c_int64(torch.get_num_threads()))


def empty(shape: tuple[int, ...]) -> torch.Tensor:
    """An uninitialised result of a C++ function, whatever the default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def zeros(shape: tuple[int, ...]) -> torch.Tensor:
    """A result of a C++ function that adds to it."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def as_float(x: torch.Tensor | None) -> torch.Tensor | None:
    """`x` in single precision with the channels of a head side by side, as the C++ kernels read it."""
    return x if x is None or (x.dtype == torch.float32 and x.stride(-1) == 1) else x.float().contiguous()


def numbers(*values: int) -> torch.Tensor:
    """Integers as the C++ kernels read a list of them."""
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def strides(*maps: torch.Tensor) -> torch.Tensor:
    """Strides of the first four axes of (B, H, W, heads, head_dim) tensors, one after the other."""
    return numbers(*(stride for x in maps for stride in x.stride()[:4]))


def _as_c(argument: object) -> object:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, torch.Tensor):
        _check(argument)
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


def _check(x: torch.Tensor) -> None:
    dense = x.stride(-1) == 1 or x.shape[-1] == 1 if x.ndim == 5 else x.is_contiguous()
    if x.dtype not in (torch.float32, torch.int64) or x.device.type != "cpu" or not (dense or x.numel() == 0):
        raise ValueError(f"C++ does not read {tuple(x.shape)} {x.dtype} on {x.device} with strides {x.stride()}")


@cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The library of all operations, or the reason why there is none."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
    if compiler is None:
        return None, "no C++ compiler was found (CXX, c++, g++, clang++)"
    try:
        return ctypes.CDLL(str(_build(compiler))), ""
    except (OSError, subprocess.SubprocessError) as error:
        output = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [type(error).__name__]
        return None, f"the C++ kernels do not build with {compiler}: {output[0]}"


def _build(compiler: str) -> Path:
    """The built library in the user's cache, named by all that it depends on."""
    sources = sorted(FOLDER.glob("*/native.cpp"))
    parts = [path.read_text() for path in [*sources, *sorted(FOLDER.glob("**/*.h"))]]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    name = hashlib.sha256("\0".join([*parts, *FLAGS, compiler, version, _processor()]).encode()).hexdigest()[:24]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo" / "kernels"
    built = home / f"{name}.so"
    if not built.exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as folder:
            unit = Path(folder) / "all.cpp"
            unit.write_text("".join(f'#include "{path}"\n' for path in sources))
            command = [compiler, *FLAGS, f"-I{FOLDER}", str(unit), "-o", f"{folder}/all.so"]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONGEST_BUILD)
            ctypes.CDLL(f"{folder}/all.so")  # what does not load must not be kept
            os.replace(f"{folder}/all.so", built)  # another process may be doing the same: both files are equal
    return built


def _processor() -> str:
    """What "native" stands for: the instructions that the processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
