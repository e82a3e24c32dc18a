"""Aggregated attention on the CPU: calls native.cpp."""

from __future__ import annotations

import torch

from zoo.kernels.native import as_float, call, empty, numbers, strides, too_many_keys, zeros

MOST_PARTS = 4
"""Tasks per head in the backward pass, each with its own gradient of the biases."""


def limit(pooled_k: torch.Tensor, size: int) -> str:
    """Why a query has too many keys for the C++ kernels; empty if it does not."""
    return too_many_keys(pooled_k.shape[1] * pooled_k.shape[2] + size**2)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pooled_k: torch.Tensor,
    pooled_v: torch.Tensor,
    local_bias: torch.Tensor,
    pooled_bias: torch.Tensor,
    extra: torch.Tensor,
    size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `operator.forward`.

    Raises:
        ValueError: if a query has too many keys.
    """
    if reason := limit(pooled_k, size):
        raise ValueError(reason)
    maps = [as_float(t) for t in (q, k, v, pooled_k, pooled_v)]
    plain = [t.float().contiguous() for t in (local_bias, pooled_bias, extra)]
    out, lse = empty(q.shape), empty(q.shape[:4])
    shape = numbers(*q.shape, *pooled_k.shape[1:3], size)
    call("aggregated_attention_forward", *maps, *plain, out, lse, shape, strides(*maps, out))
    return out.to(q.dtype), lse


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
    dtypes = [t.dtype for t in (q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra)]
    maps = [as_float(t) for t in (q, k, v, pooled_k, pooled_v)]
    plain = [t.float().contiguous() for t in (local_bias, pooled_bias, extra)]
    grad = as_float(grad)
    dq, dk, dv = empty(q.shape), zeros(q.shape), zeros(q.shape)
    dpooled = [zeros(t.shape) for t in (pooled_k, pooled_v)]
    parts = max(1, min(MOST_PARTS, q.shape[0]))
    biases = [zeros((parts, *t.shape)) for t in (local_bias, pooled_bias)]
    dextra = empty(extra.shape)
    shape = numbers(*q.shape, *pooled_k.shape[1:3], size)
    layout = strides(*maps, grad, dq, dpooled[0])
    results = (dq, dk, dv, *dpooled, *biases, dextra)
    call("aggregated_attention_backward", grad, *maps, *plain, lse, *results, shape, layout, parts)
    found = (dq, dk, dv, *dpooled, *(b.sum(0) for b in biases), dextra)
    return tuple(t.to(given) for t, given in zip(found, dtypes, strict=True))
