"""Convolutions for (B, H, W, C) tensors.

A permuted NHWC tensor is a channels_last NCHW tensor, so nothing here copies its input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from zoo.kernels.exporting import exporting
from zoo.kernels.sizes import ceil_div, statically_true
from zoo.nn.layers.hooks import is_hooked

Sides = tuple[tuple[int, int], tuple[int, int]]


def depthwise(dim: int, kernel: int = 3, stride: int = 1, padding: int | None = None, bias: bool = True) -> nn.Conv2d:
    """A depthwise convolution; zeros on every side, kernel // 2 of them unless told otherwise.

    A depthwise kernel is contiguous in both layouts. Giving it the strides of NHWC makes oneDNN keep the map in
    channels_last even when a batch of one makes the map's own strides ambiguous.
    """
    padding = kernel // 2 if padding is None else padding
    conv = nn.Conv2d(dim, dim, kernel, stride, padding, groups=dim, bias=bias)
    nhwc = conv.weight.data.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    conv.weight.data = nhwc.permute(0, 3, 1, 2)
    return conv


def convolve(conv: nn.Module, x: torch.Tensor, kernel: int = 1) -> torch.Tensor:
    """Apply a convolution of NCHW maps, or its replacement, to (B, H, W, C).

    Args:
        kernel: its side, if that may exceed 16: oneDNN has no fast gradient for such kernels with one channels_last
            map.
    """
    if getattr(conv, "of_nhwc", False):
        return conv(x)
    maps = x.permute(0, 3, 1, 2)
    slow = kernel > 16 and x.device.type == "cpu" and statically_true(x.shape[0] == 1)
    # What passes for channels_last depends on the sizes, which would bind an exported program to some; and those who
    # look at a layer's input may take its strides for those of NCHW, as Opacus does.
    if slow or exporting() or is_hooked(conv):
        maps = maps.contiguous()
    return conv(maps).permute(0, 2, 3, 1).contiguous()


def least_padding(kernel: int, stride: int) -> int:
    """Zeros that TensorFlow's "same" padding puts on every side of a map of any size."""
    return max(kernel - stride, 0) // 2


def zeros_beside(conv: nn.Conv2d) -> tuple[int, int]:
    """The vertical and horizontal zero padding of a convolution with numeric padding."""
    assert not isinstance(conv.padding, str)
    return conv.padding[0], conv.padding[1]


def same_padding(shape: Sequence[int], conv: nn.Conv2d) -> Sides:
    """The additional padding that a convolution made with `least_padding` needs for ceil(size / stride) output pixels.

    Returns:
        Zeros above and below, then left and right; the odd one comes last.
    """
    top_bottom, left_right = (
        _lacking(*sides) for sides in zip(shape, conv.kernel_size, conv.stride, zeros_beside(conv), strict=True)
    )
    return top_bottom, left_right


def pad_same(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """(B, H, W, C) extended by the zeros of `same_padding`."""
    (top, bottom), (left, right) = same_padding(x.shape[1:3], conv)
    if statically_true(bottom == 0) and statically_true(right == 0):
        return x
    return F.pad(x, (0, 0, left, right, top, bottom))


def _lacking(length: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    total = max((ceil_div(length, stride) - 1) * stride + kernel - length, 0)
    return total // 2 - padding, total - total // 2 - padding
