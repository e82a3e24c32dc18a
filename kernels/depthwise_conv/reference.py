"""Depthwise convolution and activation in plain PyTorch: the specification, on any device and in any dtype."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.kernels.packed_linear.reference import ACTIVATIONS


def depthwise_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, padding: tuple[int, int], act: str
) -> torch.Tensor:
    """See `api.depthwise_conv`."""
    kernels = weight.permute(2, 0, 1)[:, None]
    maps = F.conv2d(x.permute(0, 3, 1, 2), kernels, bias, stride, padding, groups=x.shape[3])
    return ACTIVATIONS[act](maps.permute(0, 2, 3, 1).contiguous())
