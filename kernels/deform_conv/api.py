"""Deformable convolution: every tap of the kernel reads at a position shifted by an offset."""

from __future__ import annotations

from functools import partial

import torch

from zoo.kernels.backends import infers_natively
from zoo.kernels.checks import as_pair
from zoo.kernels.deform_conv import native, reference, vision_op
from zoo.kernels.transforms import twice_differentiable


def deform_conv(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, int] = 1,
) -> torch.Tensor:
    """A convolution without padding whose taps sample the map bilinearly at real-valued positions.

    Deformable ConvNets, https://arxiv.org/abs/1703.06211, equations 2 to 4. Outside its borders the map is zero.

    Args:
        x: (B, H, W, C_in), any strides.
        offset: (B, h, w, 2 * kh * kw), added to the position of each tap: taps row-major, each (dy, dx), in positions.
        weight: (C_out, C_in, kh, kw).
        bias: (C_out,).
        stride: of the taps' own positions, per axis.

    Returns:
        (B, h, w, C_out).

    Raises:
        ValueError: if shapes do not agree.
    """
    stride = as_pair(stride, "stride")
    if x.ndim != 4 or weight.ndim != 4 or x.shape[3] != weight.shape[1]:
        raise ValueError(f"x is {tuple(x.shape)}, weight {tuple(weight.shape)}: expected (B, H, W, C) and (.., C, ..)")
    _check_offset(x, offset, (weight.shape[2], weight.shape[3]), stride)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {tuple(bias.shape)}, expected {tuple(weight.shape[:1])}")
    plain = partial(reference.deform_conv, stride=stride)
    if not vision_op.can_run(x):
        return plain(x, offset, weight, bias)
    return twice_differentiable(partial(vision_op.deform_conv, stride=stride), plain, x, offset, weight, bias)


def taps(
    x: torch.Tensor, offset: torch.Tensor, kernel: int | tuple[int, int], stride: int | tuple[int, int] = 1
) -> torch.Tensor:
    """What the taps of a deformable convolution read: its output is their product with the weight.

    On the CPU a C++ kernel runs in float32 where no gradient is wanted, elsewhere PyTorch's own operators.

    Args:
        x, offset, stride: see `deform_conv`.
        kernel: (kh, kw).

    Returns:
        (B, h, w, kh, kw, C_in).

    Raises:
        ValueError: if shapes do not agree.
    """
    kernel, stride = as_pair(kernel, "kernel"), as_pair(stride, "stride")
    _check_offset(x, offset, kernel, stride)
    return (native if infers_natively(x, offset) else reference).taps(x, offset, kernel, stride)


def _check_offset(x: torch.Tensor, offset: torch.Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    sides = zip(x.shape[1:3], kernel, stride, strict=True)
    shape = (x.shape[0], *((n - k) // s + 1 for n, k, s in sides), 2 * kernel[0] * kernel[1])
    if min(shape[1:3]) < 1:
        raise ValueError(f"the map is {tuple(x.shape[1:3])}, expected at least the kernel {kernel}")
    if offset.shape != shape:
        raise ValueError(f"offset is {tuple(offset.shape)}, expected {shape}")
