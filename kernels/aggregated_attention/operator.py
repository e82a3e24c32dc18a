"""Aggregated attention as a PyTorch operator for autograd, torch.compile and related tools, with any backend."""

from __future__ import annotations

import math
from functools import partial

import torch

from zoo.kernels.aggregated_attention.reference import aggregated_attention
from zoo.kernels.backends import as_forced, forced, implementation
from zoo.kernels.flops import count_operations
from zoo.kernels.transforms import differentiable


@torch.library.custom_op("zoo::aggregated_attention", mutates_args=())
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
    """The output, and the log-sum-exp of each query's logits, (B, H, W, heads) float32."""
    return implementation("aggregated_attention", q).forward(
        q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra, size
    )


@torch.library.custom_op("zoo::aggregated_attention_backward", mutates_args=())
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
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]:
    """Gradients of q, k, v, pooled_k, pooled_v, local_bias, pooled_bias and extra."""
    return implementation("aggregated_attention", q).backward(
        grad, q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra, out, lse, size
    )


@forward.register_fake
def _(q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra, size):
    return q.new_empty(q.shape), q.new_empty(q.shape[:4], dtype=torch.float32)


@backward.register_fake
def _(grad, q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra, out, lse, size):
    return tuple(t.new_empty(t.shape) for t in (q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra))


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.size = inputs
    ctx.backend = forced()
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx, grad, _):
    if torch.is_grad_enabled():  # for a gradient of this gradient
        return *differentiable(partial(aggregated_attention, size=ctx.size), grad, *ctx.saved_tensors[:8]), None
    with as_forced(ctx.backend):
        return *backward(grad, *ctx.saved_tensors, ctx.size), None


forward.register_autograd(_differentiate, setup_context=_save)
count_operations("aggregated_attention", 8, keys=lambda shapes, settings: settings[0] ** 2 + math.prod(shapes[3][1:3]))
