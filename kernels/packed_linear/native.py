"""Packed layers on the CPU: calls native.cpp."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from zoo.kernels.native import bfloat16, call, empty, number, numbers, rows

Packed = tuple[torch.Tensor, torch.Tensor]
"""Panels and bias."""
CODES = {"none": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3}


@cache
def width() -> int:
    """Outputs of a panel."""
    return number("packed_linear_width")


@cache
def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 numbers: AVX512-BF16."""
    return bool(number("packed_linear_has_bfloat16"))


def packed_conv(
    x: torch.Tensor,
    panels: torch.Tensor,
    bias: torch.Tensor,
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    act: str,
) -> torch.Tensor:
    """See `api.packed_conv`, which checks the arguments."""
    batch, channels = x.shape[0], x.shape[3]
    shape = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:3], kernel, stride, strict=True)]
    out = empty((batch, *shape, outputs))
    image, row, column = x.stride()[:3]
    layout = (batch, *shape, kernel[0], kernel[1] * channels, outputs)
    steps = (image, row * stride[0], column * stride[1], row)
    function = f"packed_linear{_kind(panels)}_forward"
    call(function, rows(x), _weights(panels), bias, out, numbers(*layout, *steps), CODES[act])
    return out


def packed_mlp(x: torch.Tensor, first: Packed, second: Packed, hidden: int, outputs: int, act: str) -> torch.Tensor:
    """See `api.packed_mlp`, which checks the arguments."""
    out = empty((*x.shape[:3], outputs))
    shape = numbers(out.numel() // outputs, x.shape[3], hidden, outputs)
    (panels1, bias1), (panels2, bias2) = first, second
    function = f"packed_mlp{_kind(panels1)}_forward"
    call(function, x, _weights(panels1), bias1, _weights(panels2), bias2, out, shape, CODES[act])
    return out


def _kind(panels: torch.Tensor) -> str:
    return "_bfloat16" if panels.dtype == torch.bfloat16 else ""


def _weights(panels: torch.Tensor) -> torch.Tensor | ctypes.c_void_p:
    """Panels as a function of their kind takes them."""
    return bfloat16(panels) if _kind(panels) else panels


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm over the last axis of a contiguous tensor."""
    out = empty(x.shape)
    call("layer_norm_forward", x, weight, bias, out, numbers(x.numel() // x.shape[-1], x.shape[-1]), float(eps))
    return out


def activate_(x: torch.Tensor, act: str) -> torch.Tensor:
    """An activation of a contiguous tensor, in place."""
    call("activation_forward", x, x.numel(), CODES[act])
    return x
