"""Aggregated attention in Triton: backward.

Five kernels, in which no two programs add to the same memory: see README.md.
"""

from __future__ import annotations

import torch

from zoo.kernels.aggregated_attention.tiles import layout
from zoo.kernels.aggregated_attention.triton_extra import extra_gradient
from zoo.kernels.aggregated_attention.triton_keys import keys_gradients
from zoo.kernels.aggregated_attention.triton_pooled import pooled_bias_gradient, pooled_keys_gradients
from zoo.kernels.aggregated_attention.triton_queries import queries_gradients


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pooled_k: torch.Tensor,
    pooled_v: torch.Tensor,
    local_bias: torch.Tensor,
    pooled_bias: torch.Tensor,
    extra: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    size: int,
) -> tuple[torch.Tensor, ...]:
    """See `operator.backward`."""
    (extra, *rows), strides = layout(extra, grad, v, q, k, pooled_k, pooled_v)
    local_bias, pooled_bias, lse, out = (t.contiguous() for t in (local_bias, pooled_bias, lse, out))
    delta, d_extra = extra_gradient(extra, rows[0], rows[1], out, strides[:7], size)
    dq, d_local_bias = queries_gradients(rows, local_bias, pooled_bias, lse, delta, strides[3:], size)
    dk, dv = keys_gradients(extra, rows[:4], local_bias, lse, delta, strides[:11], size)
    grad, _, *rows = rows
    pairs = (grad, rows[0], *rows[2:], pooled_bias, lse, delta)
    strides = [*strides[3:5], *strides[7:9], *strides[11:]]
    d_pooled_k, d_pooled_v = pooled_keys_gradients(pairs, strides)
    d_pooled_bias = pooled_bias_gradient(pairs, strides)
    return dq, dk, dv, d_pooled_k, d_pooled_v, d_local_bias, d_pooled_bias, d_extra
