"""Depthwise convolution on the CPU: calls native.cpp."""

from __future__ import annotations

from functools import cache

import torch

from zoo.kernels.native import call, empty, number, numbers, rows
from zoo.kernels.packed_linear.native import CODES

KERNELS, STRIDES = (3, 5, 7), (1, 2)


@cache
def lanes() -> int:
    """The least number of channels."""
    return number("depthwise_conv_lanes")


def limit(channels: int, kernel: int, stride: int) -> str:
    """Why the C++ kernel does not compute such a convolution; empty if it does."""
    if kernel not in KERNELS or stride not in STRIDES:
        return f"the C++ kernel takes kernels of 3, 5 or 7 and strides of 1 or 2, not {kernel} and {stride}"
    if channels < lanes():
        return f"the C++ kernel takes at least {lanes()} channels, not {channels}"
    return ""


def depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int,
    padding: tuple[int, int],
    act: str,
) -> torch.Tensor:
    """See `api.depthwise_conv`, which checks the arguments; `weight` is (k, k, channels)."""
    kernel = weight.shape[0]
    shape = [(n + 2 * p - kernel) // stride + 1 for n, p in zip(x.shape[1:3], padding, strict=True)]
    out = empty((x.shape[0], *shape, x.shape[3]))
    sizes = numbers(*x.shape, *shape, *padding, *x.stride()[:3])
    call("depthwise_conv_forward", rows(x), weight, bias, out, sizes, kernel, stride, CODES[act])
    return out
