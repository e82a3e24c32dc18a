"""Neighborhood attention on the CPU: calls native.cpp."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.kernels.checks import as_pair
from zoo.kernels.native import as_float, call, empty, numbers, strides

TALLEST, WIDEST = 13, 15
"""Rows and columns of the largest window; the C++ code is compiled once for each number of rows."""
SPARE = 16
"""Padding after each row of a table, so that the kernels can read a whole vector from its last entry."""


def limit(size: int | tuple[int, int]) -> str:
    """Why windows of a size are too large for the C++ kernels; empty if they are not."""
    size = as_pair(size, "size")
    if size[0] <= TALLEST and size[1] <= WIDEST:
        return ""
    return f"the C++ kernels take windows of at most {TALLEST} x {WIDEST}, not {size[0]} x {size[1]}"


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    size: list[int],
    dilation: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `biased_operator`."""
    _refuse(size)
    dtype = q.dtype
    q, k, v = (as_float(t) for t in (q, k, v))
    bias = None if bias is None else F.pad(bias.float(), (0, SPARE))
    out, lse = empty(q.shape), empty(q.shape[:4])
    shape = numbers(*q.shape, *size, *dilation)
    call("neighborhood_attention_forward", q, k, v, bias, out, lse, shape, strides(q, k, v, out), scale)
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
    dilation: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `biased_operator`."""
    _refuse(size)
    dtype, bias_dtype = q.dtype, q.dtype if bias is None else bias.dtype
    grad, q, k, v, out = (as_float(t) for t in (grad, q, k, v, out))
    bias = None if bias is None else F.pad(bias.float(), (0, SPARE))
    dq, dk, dv = (empty(q.shape) for _ in range(3))
    partial = None if bias is None else bias.new_zeros(q.shape[0] * dilation[0], *bias.shape)
    shape = numbers(*q.shape, *size, *dilation)
    layout = strides(q, k, v, grad, out, dq)
    call("neighborhood_attention_backward", grad, q, k, v, bias, out, lse, dq, dk, dv, partial, shape, layout, scale)
    dq, dk, dv = (t.to(dtype) for t in (dq, dk, dv))
    if partial is None:
        return dq, dk, dv, q.new_empty(0, dtype=dtype)
    return dq, dk, dv, partial.sum(0)[..., :-SPARE].to(bias_dtype).contiguous()


def _refuse(size: list[int]) -> None:
    if reason := limit((size[0], size[1])):
        raise ValueError(reason)
