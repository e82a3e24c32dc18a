"""Neighborhood attention on the CPU: calls native.cpp."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.kernels.native import as_float, call, numbers, strides

SPARE = 16
"""Numbers behind each row of a table, so that the kernels can read a whole vector from its last entry."""


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
    dtype = q.dtype
    q, k, v = (as_float(t) for t in (q, k, v))
    bias = None if bias is None else F.pad(bias.float(), (0, SPARE))
    out, lse = torch.empty(q.shape), torch.empty(q.shape[:4])
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
    dtype, table = q.dtype, bias
    grad, q, k, v, out = (as_float(t) for t in (grad, q, k, v, out))
    bias = None if bias is None else F.pad(bias.float(), (0, SPARE))
    dq, dk, dv = (torch.empty(q.shape) for _ in range(3))
    partial = None if bias is None else bias.new_zeros(q.shape[0] * dilation[0], *bias.shape)
    shape = numbers(*q.shape, *size, *dilation)
    layout = strides(q, k, v, grad, out, dq)
    call("neighborhood_attention_backward", grad, q, k, v, bias, out, lse, dq, dk, dv, partial, shape, layout, scale)
    dq, dk, dv = (t.to(dtype) for t in (dq, dk, dv))
    if partial is None:
        return dq, dk, dv, torch.empty(0, dtype=dtype)
    return dq, dk, dv, partial.sum(0)[..., :-SPARE].to(table.dtype).contiguous()
