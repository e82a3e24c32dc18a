"""Gradients of neighborhood attention on a GPU: each sum in one fixed order; see README.md."""

from __future__ import annotations

import torch

from zoo.kernels.launch import launch
from zoo.kernels.neighborhood_attention import triton_keys, triton_queries
from zoo.kernels.neighborhood_attention.triton_bias import bias_gradient
from zoo.kernels.neighborhood_attention.triton_pairs import pair_table
from zoo.kernels.neighborhood_attention.triton_plan import KEYS, QUERIES, plan_of, positive, readable


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
    dq, dk, dv = (q.new_empty(q.shape) for _ in range(3))
    row_sums = torch.empty_like(lse, dtype=torch.int64)
    sign = -1 if scale < 0 else 1
    q, scale = positive(q, scale)
    (grad, out), (q,), (k, v) = (grad.contiguous(), out.contiguous()), readable(q), readable(k, v)
    bias = None if bias is None else bias.contiguous()
    inputs = (grad, q, k, v, bias)
    first = plan_of(QUERIES, triton_queries.PER_SM, q, k, bias is not None, size, dilation)
    table = pair_table(first, q, bias, scale)
    partial = None if bias is None else q.new_empty(first.sums, dtype=torch.float32)
    results = (row_sums, dq, partial, scale, sign * scale)
    launch(triton_queries._queries, first.grid, *inputs, table, out, lse, *results, *first.numbers, **first.options)
    plan = plan_of(KEYS, triton_keys.PER_SM, q, k, bias is not None, size, dilation)
    table = pair_table(plan, q, bias, scale)
    inputs_k = (*inputs, table, row_sums)
    launch(triton_keys._keys_values, plan.grid, *inputs_k, dk, dv, scale, *plan.numbers, **plan.options)
    if bias is None or partial is None:
        return dq, dk, dv, q.new_empty(0)
    return dq, dk, dv, bias_gradient(first, partial, bias)
