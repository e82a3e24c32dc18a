"""Argument checks that the operations share."""

from __future__ import annotations

import torch


def check_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raise ValueError unless q, k and v are (B, H, W, heads, head_dim) of one shape, dtype and device."""
    if q.ndim != 5:
        raise ValueError(f"q has {q.ndim} dimensions, expected 5: (B, H, W, heads, head_dim)")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != q.shape or tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}, "
                f"but q is {tuple(q.shape)} {q.dtype} on {q.device}: they must agree"
            )


def as_pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    """`value` as a (height, width) pair of positive integers."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} is {value}, expected one or two positive integers")
    return pair
