"""Argument checks that the operations share."""

from __future__ import annotations

import operator

import torch

from zoo.kernels.sizes import statically_true

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = 2**20
"""The largest side of a window or region, in positions: a map is padded to a multiple of it."""


def check_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, own_map: bool = True) -> None:
    """Raise ValueError unless q, k and v are (B, H, W, heads, head_dim) of one dtype and device and agreeing shapes.

    The dtype is a floating-point one, and only the batch may be empty.

    k and v have the map of q or, if not `own_map`, a map of any size.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}, expected a tensor")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name} has the layout {tensor.layout}, expected a dense tensor: {name}.to_dense()")
    if q.ndim != 5:
        raise ValueError(f"q has {q.ndim} dimensions, expected 5: (B, H, W, heads, head_dim)")
    if q.dtype not in DTYPES:
        raise ValueError(f"q is of {q.dtype}, expected a floating-point dtype of 16, 32 or 64 bits")
    for name, tensor in (("k", k), ("v", v)):
        expected = q.shape if own_map or tensor.ndim != 5 else (q.shape[0], *k.shape[1:3], *q.shape[3:])
        if tensor.shape != expected or tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}, "
                f"but q is {tuple(q.shape)} {q.dtype} on {q.device}: they must agree"
            )
        if any(statically_true(n == 0) for n in tensor.shape[1:]):
            raise ValueError(f"{name} is {tuple(tensor.shape)}: only the batch, the first axis, may be empty")


def check_table(name: str, table: torch.Tensor, shape: tuple[int, ...], q: torch.Tensor) -> None:
    """Raise ValueError unless a tensor added to logits or weights has this shape, is real and on the device of `q`."""
    if not isinstance(table, torch.Tensor):
        raise ValueError(f"{name} is a {type(table).__name__}, expected a tensor")
    if table.shape != shape:
        raise ValueError(f"{name} is {tuple(table.shape)}, expected {tuple(shape)}")
    if table.dtype not in DTYPES or table.device != q.device:
        raise ValueError(
            f"{name} is {table.dtype} on {table.device}, expected a floating-point dtype on {q.device}, as q is there"
        )


def check_scale(scale: float | None, head_dim: int) -> float:
    """The factor of the logits, head_dim ** -0.5 if None; ValueError unless it is a number."""
    if scale is None:
        return head_dim**-0.5
    if not isinstance(scale, (int, float, torch.SymInt, torch.SymFloat)) and not torch.jit.is_tracing():
        found = "a tensor, through which no gradient flows" if isinstance(scale, torch.Tensor) else repr(scale)
        raise ValueError(f"scale is {found}, expected a number: multiply q by anything else")
    return scale


def as_pair(value: int | tuple[int, int], name: str, largest: int | None = None) -> tuple[int, int]:
    """`value` as a (height, width) pair of positive integers, each at most `largest`."""
    try:
        pair = tuple(map(_integer, value if isinstance(value, (tuple, list)) else (value, value)))
    except TypeError:
        pair = ()
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} is {value}, expected one or two positive integers")
    if largest is not None and not torch.compiler.is_compiling() and max(pair) > largest:
        raise ValueError(f"{name} is {value}, expected at most {largest}")
    return pair


def _integer(value: int) -> int:
    return value if isinstance(value, (int, torch.SymInt)) else operator.index(value)
