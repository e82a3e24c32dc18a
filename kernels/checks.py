"""Argument checks that the operations share."""

from __future__ import annotations

import torch

from zoo.kernels.sizes import statically_true


def check_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, own_map: bool = True) -> None:
    """Raise ValueError unless q, k and v are (B, H, W, heads, head_dim) of one dtype and device and agreeing shapes.

    The dtype is a floating-point one, and only the batch may be empty.

    k and v have the map of q or, if not `own_map`, a map of any size.
    """
    if q.ndim != 5:
        raise ValueError(f"q has {q.ndim} dimensions, expected 5: (B, H, W, heads, head_dim)")
    if not q.is_floating_point():
        raise ValueError(f"q is of {q.dtype}, expected a floating-point dtype")
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
    if table.shape != shape:
        raise ValueError(f"{name} is {tuple(table.shape)}, expected {tuple(shape)}")
    if not table.is_floating_point() or table.device != q.device:
        raise ValueError(
            f"{name} is {table.dtype} on {table.device}, expected a floating-point dtype on {q.device}, as q is there"
        )


def as_pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    """`value` as a (height, width) pair of positive integers."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or any(isinstance(n, float) for n in pair) or min(pair) < 1:
        raise ValueError(f"{name} is {value}, expected one or two positive integers")
    return pair
