"""Deformable convolution by torchvision's operator, where torchvision is installed."""

from __future__ import annotations

from importlib.util import find_spec

import torch

_EXISTS = find_spec("torchvision") is not None


def can_run(x: torch.Tensor) -> bool:
    """Whether the operator takes `x`: in eager mode, and on the CPU in single or double precision."""
    if not _EXISTS or torch.compiler.is_compiling():
        return False
    return x.device.type == "cuda" or (x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64))


def deform_conv(
    x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, int]
) -> torch.Tensor:
    """See `api.deform_conv`."""
    from torchvision.ops import deform_conv2d

    x, offset = (t.permute(0, 3, 1, 2).contiguous() for t in (x, offset))
    return deform_conv2d(x, offset, weight, bias, stride).permute(0, 2, 3, 1).contiguous()
