"""Convolutions on contiguous (B, H, W, C) tensors.

A permuted NHWC tensor is a channels_last NCHW tensor, so no layer here copies its input.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from zoo.kernels.exporting import exporting
from zoo.kernels.sizes import always, steps
from zoo.schema import Index


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` on (B, H, W, C), with TensorFlow's "same" padding as an option.

    Args:
        padding: zeros on every side; None for dilation * (kernel // 2); "same" pads an output of ceil(size / stride)
            pixels with the odd zero on the right and at the bottom.
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
        dilation: int = 1,
    ) -> None:
        symmetric = dilation * (kernel // 2) if padding is None else 0 if padding == "same" else padding
        super().__init__(dim_in, dim, kernel, stride, symmetric, dilation, groups, bias)
        self.same = padding == "same"
        if groups == dim_in:
            # A depthwise kernel is contiguous in both layouts. Written with the strides of NHWC, it tells oneDNN to
            # keep the map in channels_last even where a batch of one leaves the map's own strides ambiguous.
            nhwc = self.weight.data.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
            self.weight.data = nhwc.permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply_weight(x, self.weight, self.bias)

    def apply_weight(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer with another weight and bias."""
        padding = self.padding
        if self.same:
            x, weight, padding = self._same(x, weight)
        maps = x.permute(0, 3, 1, 2)
        # oneDNN has no fast gradient of large kernels for one map in channels_last, and what PyTorch takes for
        # channels_last depends on the sizes, which would bind an exported program to some.
        slow = x.device.type == "cpu" and max(self.kernel_size) > 16 and always(x.shape[0] == 1)
        if slow or exporting():
            maps = maps.contiguous()
        out = F.conv2d(maps, weight, bias, self.stride, padding, dilation=self.dilation, groups=self.groups)
        return out.permute(0, 2, 3, 1).contiguous()

    def _same(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
        """The map, the kernel and the symmetric padding that together give TensorFlow's "same" result.

        Where TensorFlow pads one more zero behind the map than before it, a padded copy of the map would cost more
        than the convolution. A zero row in front of the kernel gives the same sums. Compiled, the pad is written
        together with whatever computes the map, and costs nothing; and the gradients of an even kernel cost oneDNN
        several times those of an odd one.
        """
        sides = zip(x.shape[1:3], self.kernel_size, self.stride, strict=True)
        total = [max((steps(n, s) - 1) * s + k - n, 0) for n, k, s in sides]
        extra = [t % 2 for t in total]
        if always(extra[0] == 0) and always(extra[1] == 0):
            return x, weight, tuple(t // 2 for t in total)
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return F.pad(x, (0, 0, 0, extra[1], 0, extra[0])), weight, tuple(t // 2 for t in total)
        return x, F.pad(weight, (extra[1], 0, extra[0], 0)), tuple((t + 1) // 2 for t in total)


class DepthwiseConv(Conv2d):
    """A zero-padded depthwise convolution with bias on (B, H, W, dim)."""

    def __init__(self, dim: int, kernel: int = 3) -> None:
        super().__init__(dim, dim, kernel, groups=dim)
