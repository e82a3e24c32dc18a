"""Deformable convolution by torchvision's operator, where torchvision is installed."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import register_flop_formula

try:
    from torchvision.ops import deform_conv2d
except ImportError:
    deform_conv2d = None


def can_run(x: torch.Tensor) -> bool:
    """Whether the operator takes `x`: in eager mode, and on the CPU in single or double precision."""
    if deform_conv2d is None or torch.compiler.is_compiling():
        return False
    return x.device.type == "cuda" or (x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64))


def deform_conv(
    x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, int]
) -> torch.Tensor:
    """See `api.deform_conv`."""
    x, offset = (t.permute(0, 3, 1, 2).contiguous() for t in (x, offset))
    offset, weight, bias = (None if t is None else t.to(x.dtype) for t in (offset, weight, bias))  # under autocast
    return deform_conv2d(x, offset, weight, bias, stride).permute(0, 2, 3, 1).contiguous()


def _flops(x_shape: tuple, weight_shape: tuple, offset_shape: tuple, *args: object, **kwargs: object) -> int:
    """Operations of the convolution itself; the interpolation of its taps is small beside it."""
    outputs, taps = weight_shape[0], weight_shape[1] * weight_shape[2] * weight_shape[3]
    return 2 * x_shape[0] * offset_shape[2] * offset_shape[3] * outputs * taps


if deform_conv2d is not None:
    register_flop_formula(torch.ops.torchvision.deform_conv2d)(_flops)
