"""Depthwise convolution of (B, H, W, channels) with its activation, for inference."""

from __future__ import annotations

import torch

from zoo.kernels.backends import infers_natively
from zoo.kernels.depthwise_conv import native, reference


def depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    act: str = "none",
) -> torch.Tensor:
    """act(conv(x) + bias) of each channel on its own.

    PyTorch's own operators compute it where the C++ kernel cannot: where a gradient is wanted, under a transform, in a
    compiled or exported program, for other dtypes and devices, for kernels but 3, 5 and 7, for strides but 1 and 2, and
    for very few channels.

    Args:
        x: (B, H, W, channels).
        weight: (k, k, channels).
        bias: (channels,).
        stride: on both axes.
        padding: zeros above and below, and on the left and the right.
        act: "none", "gelu", "gelu_tanh" or "silu".

    Returns:
        (B, h, w, channels), contiguous.

    Raises:
        ValueError: if the shapes do not agree, or there is no such activation.
    """
    if act not in reference.ACTIVATIONS:
        raise ValueError(f"act is {act!r}, expected one of {', '.join(reference.ACTIVATIONS)}")
    if x.ndim != 4 or weight.ndim != 3 or weight.shape[0] != weight.shape[1] or weight.shape[2:] != x.shape[3:]:
        raise ValueError(f"x is {tuple(x.shape)}, weight {tuple(weight.shape)}: expected (B, H, W, C) and (k, k, C)")
    if bias.shape != weight.shape[2:]:
        raise ValueError(f"bias is {tuple(bias.shape)}, expected {tuple(weight.shape[2:])}")
    kernel = weight.shape[0]
    if min(n + 2 * p for n, p in zip(x.shape[1:3], padding, strict=True)) < kernel:
        raise ValueError(
            f"the map is {tuple(x.shape[1:3])} with {padding} zeros, expected at least the kernel {kernel}"
        )
    if not infers_natively(x, weight, bias) or weight.dtype != x.dtype or native.limit(x.shape[3], kernel, stride):
        return reference.depthwise_conv(x, weight.to(x.dtype), bias.to(x.dtype), stride, padding, act)
    return native.depthwise_conv(x if x.stride(3) == 1 else x.contiguous(), weight, bias, stride, padding, act)
