"""Deformable convolution by torchvision's operator, where torchvision is installed."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import register_flop_formula

from zoo.kernels.exporting import exporting
from zoo.kernels.transforms import transformed

try:
    from torchvision.ops import deform_conv2d
except ImportError:
    deform_conv2d = None


def can_run(x: torch.Tensor) -> bool:
    """Whether the operator exists and supports `x`: in eager mode, for plain gradients, on the CPU and on CUDA."""
    eager = not torch.compiler.is_compiling() and not exporting() and not transformed()
    return deform_conv2d is not None and eager and x.device.type in ("cpu", "cuda")


def deform_conv(
    x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, int]
) -> torch.Tensor:
    """See `api.deform_conv`. Uses at least single precision, which positions need; bfloat16 is unsupported.

    Where an offset is NaN, so is the output; the operator itself would read from arbitrary memory there.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    nowhere = offset.isnan()
    offset = offset.masked_fill(nowhere, 0.0)
    tensors = (x.permute(0, 3, 1, 2).contiguous(), offset.permute(0, 3, 1, 2).contiguous(), weight, bias)
    out = deform_conv2d(*(None if t is None else t.to(wide) for t in tensors), stride)
    nan_or_one = torch.ones_like(out[:, :1]).masked_fill(nowhere.any(-1)[:, None], float("nan"))
    return (out * nan_or_one).permute(0, 2, 3, 1).contiguous().to(x.dtype)


def _flops(x_shape: tuple, weight_shape: tuple, offset_shape: tuple, *args: object, **kwargs: object) -> int:
    """Operations of the convolution itself; the interpolation of its taps is negligible."""
    outputs, taps = weight_shape[0], weight_shape[1] * weight_shape[2] * weight_shape[3]
    return 2 * x_shape[0] * offset_shape[2] * offset_shape[3] * outputs * taps


if deform_conv2d is not None:
    register_flop_formula(torch.ops.torchvision.deform_conv2d)(_flops)
