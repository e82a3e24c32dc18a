"""Routing attention as a PyTorch operator for autograd, torch.compile and related tools, with any backend."""

from __future__ import annotations

import math

import torch

from zoo.kernels.backends import as_forced, forced, implementation
from zoo.kernels.flops import count_operations
from zoo.kernels.routing_attention.reference import routing_attention
from zoo.kernels.transforms import differentiable


@torch.library.custom_op("zoo::routing_attention", mutates_args=())
def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: list[int], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and the log-sum-exp of each query's logits, (B, H, W, heads) float32."""
    return implementation("routing_attention", q).forward(q, k, v, routes, region, scale)


@torch.library.custom_op("zoo::routing_attention_backward", mutates_args=())
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
    """Gradients of q, k and v."""
    return implementation("routing_attention", q).backward(grad, q, k, v, routes, out, lse, region, scale)


@forward.register_fake
def _(q, k, v, routes, region, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape[:4], dtype=torch.float32)


@backward.register_fake
def _(grad, q, k, v, routes, out, lse, region, scale):
    return tuple(q.new_empty(q.shape) for _ in range(3))


def _save(ctx, inputs, output) -> None:
    q, k, v, routes, *ctx.settings = inputs
    ctx.backend = forced()
    ctx.save_for_backward(q, k, v, routes, *output)


def _differentiate(ctx, grad, _):
    q, k, v, routes, out, lse = ctx.saved_tensors
    if torch.is_grad_enabled():  # for a gradient of this gradient
        region, scale = ctx.settings

        def specified(q, k, v):
            return routing_attention(q, k, v, routes, tuple(region), scale)

        return *differentiable(specified, grad, q, k, v), None, None, None
    with as_forced(ctx.backend):
        return *backward(grad, q, k, v, routes, out, lse, *ctx.settings), None, None, None


forward.register_autograd(_differentiate, setup_context=_save)
count_operations("routing_attention", 4, keys=lambda shapes, settings: shapes[3][-1] * math.prod(settings[0]))
