"""Calls the C++ kernels. If they cannot be built, they are unavailable, and one warning says why."""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from typing import Any, TypeAlias

import torch

from zoo.kernels import build
from zoo.kernels.sizes import statically_true

MOST_KEYS = 2**18
"""The limit per query: kernels that gather rows contiguously count them with 32-bit numbers."""

Numbers: TypeAlias = "ctypes.Array[ctypes.c_int64]"
Argument: TypeAlias = "torch.Tensor | ctypes.c_void_p | Numbers | int | float | None"

_untold: list[str] = []
"""The warnings to raise."""


@torch.compiler.assume_constant_result
def why_not() -> str:
    """Why there are no C++ kernels on this machine; empty if there are.

    Warns once per process if there are none or they cannot be cached.
    """
    reason = _library()[1]
    while _untold:
        warnings.warn(_untold.pop(), RuntimeWarning, stacklevel=2)
    return reason


def too_many_keys(keys: int) -> str:
    """Why a query has too many keys for kernels that gather them; empty if it does not."""
    return (
        f"the C++ kernels take at most {MOST_KEYS} keys of a query, not {keys}"
        if statically_true(keys > MOST_KEYS)
        else ""
    )


def call(function: str, *arguments: Argument) -> None:
    """Call a C++ function: tensors and lists become pointers to their data, None a null pointer, the rest numbers.

    Raises:
        ValueError: if a tensor has a form that C++ does not read. Required are single precision or 64-bit integers in
            the memory of this process, maps (five axes) with contiguous channels, and everything else contiguous.
    """
    found = getattr(_library()[0], function)
    if found.argtypes is None:  # as every later call of this function has them
        found.argtypes = [*map(_type, arguments), ctypes.c_int64]
    found(*(_as_c(x) if isinstance(x, torch.Tensor) else x for x in arguments), torch.get_num_threads())


def number(function: str) -> int:
    """The number that a C++ function without arguments returns."""
    kernels, reason = _library()
    if kernels is None:
        raise RuntimeError(f"there are no C++ kernels: {reason}")
    found = getattr(kernels, function)
    found.restype = ctypes.c_int64
    return found()


def empty(shape: tuple[int, ...]) -> torch.Tensor:
    """An uninitialised result for a C++ function, independent of the default dtype and device."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def zeros(shape: tuple[int, ...]) -> torch.Tensor:
    """A zero-initialised result for a C++ function that adds to it."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def as_float(x: torch.Tensor) -> torch.Tensor:
    """`x` in single precision with the channels of a head contiguous, as the C++ kernels require."""
    return x if x.dtype == torch.float32 and x.stride(-1) == 1 else x.float().contiguous()


def numbers(*values: int) -> Numbers:
    """Integers as a list for the C++ kernels."""
    return (ctypes.c_int64 * len(values))(*values)


def strides(*maps: torch.Tensor) -> Numbers:
    """Strides of the first four axes of (B, H, W, heads, head_dim) tensors, one after the other."""
    return numbers(*(stride for x in maps for stride in x.stride()[:4]))


def _type(argument: Argument) -> Any:
    return {int: ctypes.c_int64, float: ctypes.c_float}.get(type(argument), ctypes.c_void_p)


def rows(x: torch.Tensor) -> ctypes.c_void_p:
    """The address of a tensor whose last axis alone has to be contiguous, for a function that knows its strides.

    Raises:
        ValueError: if it is not, or not single precision in the memory of this process.
    """
    if x.dtype != torch.float32 or not x.is_cpu or not (x.stride(-1) == 1 or x.shape[-1] == 1 or x.numel() == 0):
        raise _unreadable(x)
    return ctypes.c_void_p(x.data_ptr())


def bfloat16(x: torch.Tensor) -> ctypes.c_void_p:
    """The address of a contiguous tensor in bfloat16, which `call` itself takes for a mistake.

    Raises:
        ValueError: if it is not one in the memory of this process.
    """
    if x.dtype != torch.bfloat16 or not x.is_cpu or not x.is_contiguous():
        raise _unreadable(x)
    return ctypes.c_void_p(x.data_ptr())


def _as_c(x: torch.Tensor) -> int:
    dense = x.stride(-1) == 1 or x.shape[-1] == 1 if x.ndim == 5 else x.is_contiguous()
    if x.dtype not in (torch.float32, torch.int64) or not x.is_cpu or not (dense or x.numel() == 0):
        raise _unreadable(x)
    return x.data_ptr()


def _unreadable(x: torch.Tensor) -> ValueError:
    return ValueError(f"C++ does not read {tuple(x.shape)} {x.dtype} on {x.device} with strides {x.stride()}")


@cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The library of all operations, or the reason why there is none."""
    try:
        found, note = build.library()
    except build.CannotBuildError as error:
        _untold.append(f"{error}. Until then PyTorch's own operators serve, several times as slow")
        return None, str(error)
    _untold.extend([note] if note else [])
    return found, ""
