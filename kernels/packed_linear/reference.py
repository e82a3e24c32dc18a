"""Convolution and activation in plain PyTorch: the specification, on any device and in any dtype."""

from __future__ import annotations

import torch
from torch.nn import functional as F

ACTIVATIONS = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def packed_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: tuple[int, int], act: str
) -> torch.Tensor:
    """See `api.packed_conv`; `weight` is (outputs, channels, kh, kw)."""
    return ACTIVATIONS[act](F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride).permute(0, 2, 3, 1).contiguous())
