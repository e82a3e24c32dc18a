"""Window attention on the CPU: calls native.cpp."""

from __future__ import annotations

import torch

from zoo.kernels.checks import as_pair
from zoo.kernels.native import as_float, call, empty, numbers, strides, too_many_keys, zeros

MOST_PARTS = 64
"""Tasks per head in the backward pass."""


def limit(size: int | tuple[int, int]) -> str:
    """Why groups of a size are too large for the C++ kernels; empty if they are not."""
    height, width = as_pair(size, "size")
    return too_many_keys(height * width)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    size: list[int],
    interval: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `biased_operator`."""
    dtype = q.dtype
    q, k, v = (as_float(t) for t in (q, k, v))
    bias = None if bias is None else bias.float().contiguous()
    out, lse = empty(q.shape), empty(q.shape[:4])
    shape = numbers(*q.shape, *size, *interval)
    call("window_attention_forward", q, k, v, bias, out, lse, shape, strides(q, k, v, out), scale)
    return out.to(dtype), lse


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    size: list[int],
    interval: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `biased_operator`."""
    dtype, bias_dtype = q.dtype, q.dtype if bias is None else bias.dtype
    grad, q, k, v, out = (as_float(t) for t in (grad, q, k, v, out))
    bias = None if bias is None else bias.float().contiguous()
    dq, dk, dv = empty(q.shape), zeros(q.shape), zeros(q.shape)
    parts, partial = MOST_PARTS, None
    if bias is not None:
        parts = max(1, min(MOST_PARTS, q.numel() // max(1, bias.numel())))  # their tables are no larger than q
        partial = bias.new_zeros(parts, *bias.shape)
    shape, layout = numbers(*q.shape, *size, *interval), strides(q, k, v, grad, out, dq)
    call(
        "window_attention_backward",
        *(grad, q, k, v, bias, out, lse, dq, dk, dv, partial, shape, layout, scale, parts),
    )
    dbias = q.new_empty(0, dtype=dtype) if partial is None else partial.sum(0).to(bias_dtype)
    return dq.to(dtype), dk.to(dtype), dv.to(dtype), dbias
