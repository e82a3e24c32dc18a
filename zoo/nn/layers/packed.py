"""Layers for inference on the CPU whose weights are packed for the processor; `zoo.optimize` puts them in.

They compute what the layers they were made of compute, in one pass over their output: product, bias and activation.
Where the C++ kernels cannot run, as in an exported program, PyTorch's operators do.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from zoo.kernels.backends import infers_natively
from zoo.kernels.deform_conv.api import taps
from zoo.kernels.depthwise_conv.api import depthwise_conv
from zoo.kernels.packed_linear import native
from zoo.kernels.packed_linear.api import pack, packed_conv, unpack
from zoo.nn.layers.activations import ACTIVATIONS, Activation
from zoo.nn.layers.conv import zeros_beside

NAMES: dict[Activation | None, str] = {act: name for name, act in ACTIVATIONS.items()}


class Packed(nn.Module):
    """A layer on (B, H, W, C) that also computes the activation after it."""

    of_nhwc = True

    def forward(self, x: torch.Tensor, act: Activation | None = None) -> torch.Tensor:
        """act(layer(x))."""
        y = self.compute(x, NAMES.get(act, "none"))
        return y if act is None or act in NAMES else act(y)

    def compute(self, x: torch.Tensor, act: str) -> torch.Tensor:
        """The same with an activation of the kernels."""
        raise NotImplementedError


class PackedConv(Packed):
    """A linear layer or an ungrouped convolution with zero padding, on (..., C) and (B, H, W, C)."""

    panels: torch.Tensor
    bias: torch.Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.outputs, self.inputs = layer.weight.shape[:2]
        self.kernel_size, self.stride, self.padding = (1, 1), (1, 1), (0, 0)
        if isinstance(layer, nn.Conv2d):
            self.kernel_size = (layer.kernel_size[0], layer.kernel_size[1])
            self.stride = (layer.stride[0], layer.stride[1])
            self.padding = zeros_beside(layer)
        panels, bias = pack(layer.weight.detach(), None if layer.bias is None else layer.bias.detach(), dtype)
        self.register_buffer("panels", panels)
        self.register_buffer("bias", bias)

    @property
    def packed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the kernels take."""
        return self.panels, self.bias

    @property
    def weight(self) -> torch.Tensor:
        """The layer's own weight."""
        weight = unpack(self.panels, self.outputs, self.inputs, self.kernel_size)
        return weight[:, :, 0, 0] if self.kernel_size == (1, 1) else weight

    def compute(self, x: torch.Tensor, act: str) -> torch.Tensor:
        """See `Packed`."""
        (above, left), shape = self.padding, x.shape
        if above or left:
            x = F.pad(x, (0, 0, left, left, above, above))
        y = packed_conv(_map(x), self.panels, self.bias, self.outputs, self.kernel_size, self.stride, act)
        return y if len(shape) == 4 else y.view(*shape[:-1], self.outputs)

    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first and the second half of the output channels, each contiguous."""
        count, rest = divmod(self.outputs // 2, self.panels.shape[2])
        if rest or self.outputs % 2:
            first, second = self(x).chunk(2, dim=-1)
            return first, second
        parts = zip(self.panels.split(count), self.bias.split(self.outputs // 2), strict=True)
        first, second = (packed_conv(_map(x), *part, self.outputs // 2).view(*x.shape[:-1], -1) for part in parts)
        return first, second

    def extra_repr(self) -> str:
        sizes = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{self.inputs}, {self.outputs}, {sizes}, dtype={self.panels.dtype}"


class PackedDeformConv(nn.Module):
    """A deformable convolution of (B, C, H, W) with offsets (B, 2 * kh * kw, h, w), to (B, outputs, h, w).

    Args:
        layer: with `weight` (outputs, C, kh, kw), `bias` and the `stride` of the taps.
    """

    panels: torch.Tensor
    bias: torch.Tensor

    def __init__(self, layer: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weight, bias = layer.get_parameter("weight").detach(), layer.get_parameter("bias").detach()
        self.outputs, self.kernel_size = len(weight), (weight.shape[2], weight.shape[3])
        self.stride = cast(int, layer.stride)
        panels, bias = pack(weight, bias, dtype)
        self.register_buffer("panels", panels)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        read = taps(x.permute(0, 2, 3, 1), offset.permute(0, 2, 3, 1), self.kernel_size, self.stride)
        return packed_conv(read.flatten(3), self.panels, self.bias, self.outputs).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.outputs}, kernel_size={self.kernel_size}, stride={self.stride}, dtype={self.panels.dtype}"


class PackedDepthwise(Packed):
    """A depthwise convolution with a square kernel and zero padding on (B, H, W, C)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, zeros_beside(layer)
        self.register_buffer("weight", layer.weight.detach()[:, 0].permute(1, 2, 0).contiguous())
        bias = layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias
        self.register_buffer("bias", bias.detach().clone())

    def compute(self, x: torch.Tensor, act: str) -> torch.Tensor:
        """See `Packed`."""
        return depthwise_conv(x, self.weight, self.bias, self.stride[0], self.padding, act)

    def extra_repr(self) -> str:
        channels, sizes = len(self.bias), f"kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{channels}, {sizes}, padding={self.padding}"


class PackedLayerNorm(nn.LayerNorm):
    """A layer norm with scale and shift over the last axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not infers_natively(x, self.weight, self.bias) or not x.is_contiguous():
            return super().forward(x)
        return native.layer_norm(x, self.weight, self.bias, self.eps)


def _map(x: torch.Tensor) -> torch.Tensor:
    """(..., C) as (B, H, W, C)."""
    return x if x.ndim == 4 else x.reshape(1, 1, -1, x.shape[-1])
