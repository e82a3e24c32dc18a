"""Window attention on a GPU: the tokens of a group are read in place, without copy or mask; see README.md."""

from __future__ import annotations

import torch

from zoo.kernels.window_attention import (
    triton_cut,
    triton_cut_bias,
    triton_cut_keys,
    triton_cut_queries,
    triton_packed,
    triton_packed_backward,
)
from zoo.kernels.window_attention.triton_bias import table_of
from zoo.kernels.window_attention.triton_plan import call_of, in_place, tiling

__all__ = ["backward", "forward"]


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
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:4], dtype=torch.float32)
    q, k, v = in_place(q, k, v)
    call = call_of(q, k, v, bias, size, interval)
    if tiling(call).packed:
        bias = None if bias is None else bias.contiguous()
        triton_packed.forward(call, [q, k, v, bias, out, lse], scale)
    else:
        table = None if bias is None else table_of(bias, q.dtype)
        triton_cut.forward(call, [q, k, v, table, out, lse], scale)
    return out, lse


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
    dq, dk, dv = (q.new_empty(q.shape) for _ in range(3))
    q, k, v = in_place(q, k, v)
    call = call_of(q, k, v, bias, size, interval)
    given = [grad.contiguous(), out.contiguous(), lse.contiguous()]
    run = _packed if tiling(call, "packed").packed else _cut
    dbias = run(call, [q, k, v], bias, given, [dq, dk, dv], scale)
    return dq, dk, dv, q.new_empty(0) if dbias is None else dbias


def _packed(call, qkv, bias, given, gradients, scale) -> torch.Tensor | None:
    """Everything in one kernel."""
    grad, _, lse = given
    bias = None if bias is None else bias.contiguous()
    return triton_packed_backward.backward(call, [*qkv, bias, grad, lse], gradients, scale)


def _cut(call, qkv, bias, given, gradients, scale) -> torch.Tensor | None:
    """One kernel for queries, one for keys and values, one for the bias."""
    grad, out, lse = given
    dq, dk, dv = gradients
    table, delta = None if bias is None else table_of(bias, dq.dtype), torch.empty_like(lse)
    triton_cut_queries.queries(call, [*qkv, table, grad, out, lse, delta, dq], scale)
    tensors = [*qkv, table, grad, lse, delta]
    triton_cut_keys.keys(call, [*tensors, dk, dv], scale)
    return None if bias is None else triton_cut_bias.bias_gradient(call, tensors, bias, scale)
