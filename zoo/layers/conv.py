"""Convolutions on contiguous (B, H, W, C) tensors.

A permuted NHWC tensor is a channels_last NCHW tensor, so no layer here copies its input.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from zoo.schema import Index


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` on (B, H, W, C), with TensorFlow's "same" padding as an option.

    Args:
        padding: zeros on every side; None for kernel // 2; "same" pads an output of ceil(size / stride) pixels
            with the odd zero on the right and at the bottom.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        kernel: int,
        stride: int = 1,
        padding: Index | Literal["same"] | None = None,
        bias: bool = True,
        groups: int = 1,
    ) -> None:
        symmetric = kernel // 2 if padding is None else 0 if padding == "same" else padding
        super().__init__(dim_in, dim, kernel, stride, symmetric, groups=groups, bias=bias)
        self.same = padding == "same"
        self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.same:
            x = pad_same(x, self.kernel_size[0], self.stride[0])
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


class Pointwise(nn.Linear):
    """A 1x1 convolution: a linear layer over C, initialised as a convolution."""


def pad_same(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """(B, H, W, C) zero-padded so that a convolution gives ceil(H / stride) x ceil(W / stride)."""
    height, width = ((max((-(-n // stride) - 1) * stride + kernel - n, 0)) for n in x.shape[1:3])
    return F.pad(x, (0, 0, width // 2, width - width // 2, height // 2, height - height // 2))


def pad_to_multiple(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, C) zero-padded at the right and the bottom to multiples of `size`."""
    bottom, right = (-n % m for n, m in zip(x.shape[1:3], size, strict=True))
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x
