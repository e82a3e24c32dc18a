"""Routing attention on the CPU: calls native.cpp."""

from __future__ import annotations

import torch

from zoo.kernels.checks import as_pair
from zoo.kernels.native import as_float, call, empty, numbers, strides, too_many_keys, zeros


def limit(region: int | tuple[int, int], routes: torch.Tensor) -> str:
    """Why a query has too many keys for the C++ kernels; empty if it does not."""
    height, width = as_pair(region, "region")
    return too_many_keys(height * width * routes.shape[2])


def check_routes(routes: torch.Tensor) -> None:
    """Raise ValueError if a route leads to no region."""
    if routes.numel() and not 0 <= routes.min() <= routes.max() < routes.shape[1]:
        raise ValueError(f"routes hold {routes.min()} to {routes.max()}, expected 0 to {routes.shape[1] - 1}")


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: list[int], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `operator.forward`.

    Raises:
        ValueError: if a route leads to no region, or to too many keys.
    """
    check_routes(routes)
    if reason := limit((region[0], region[1]), routes):
        raise ValueError(reason)
    dtype = q.dtype
    q, k, v = (as_float(t) for t in (q, k, v))
    routes = routes.long().contiguous()
    out, lse = empty(q.shape), empty(q.shape[:4])
    shape, layout = numbers(*q.shape, *region, routes.shape[2]), strides(q, k, v, out)
    call("routing_attention_forward", q, k, v, routes, out, lse, shape, layout, scale)
    return out.to(dtype), lse


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    routes: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    region: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `operator.backward`."""
    dtype = q.dtype
    grad, q, k, v, out = (as_float(t) for t in (grad, q, k, v, out))
    routes = routes.long().contiguous()
    dq, dk, dv = empty(q.shape), zeros(q.shape), zeros(q.shape)
    shape, layout = numbers(*q.shape, *region, routes.shape[2]), strides(q, k, v, grad, out, dq)
    call("routing_attention_backward", grad, q, k, v, routes, out, lse, dq, dk, dv, shape, layout, scale)
    return dq.to(dtype), dk.to(dtype), dv.to(dtype)
