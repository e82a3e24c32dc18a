"""Deformable convolution on the CPU: calls native.cpp."""

from __future__ import annotations

import torch

from zoo.kernels.native import call, empty, numbers, rows


def taps(x: torch.Tensor, offset: torch.Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> torch.Tensor:
    """See `api.taps`."""
    x, offset = x if x.stride(3) == 1 else x.contiguous(), offset.float().contiguous()
    out = empty((*offset.shape[:3], *kernel, x.shape[3]))
    shape = numbers(*x.shape, *offset.shape[1:3], *kernel, *stride, *x.stride()[:3])
    call("deform_conv_taps", rows(x), offset, out.flatten(), shape)
    return out
