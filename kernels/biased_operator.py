"""Attention with an optional bias as a PyTorch operator for autograd, torch.compile and related tools."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from zoo.kernels.backends import as_forced, forced, implementation
from zoo.kernels.flops import count_operations
from zoo.kernels.transforms import differentiable


def register(operation: str, reference: Callable[..., torch.Tensor]) -> Callable:
    """Register `zoo::operation` and its backward pass from the modules in the operation's folder. Returns the former.

    `reference` is its specification, which is used for gradients of gradients.

    Arguments: q, k, v, bias, two numbers `size` and two `spacing`, `scale`; a query has size[0] * size[1] keys.
    """

    @torch.library.custom_op(f"zoo::{operation}", mutates_args=())
    def forward(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        size: list[int],
        spacing: list[int],
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output, and the log-sum-exp of each query's logits, (B, H, W, heads) float32."""
        return implementation(operation, q).forward(q, k, v, bias, size, spacing, scale)

    @torch.library.custom_op(f"zoo::{operation}_backward", mutates_args=())
    def backward(
        grad: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        lse: torch.Tensor,
        size: list[int],
        spacing: list[int],
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of q, k, v and bias; the last is empty without a bias."""
        return implementation(operation, q).backward(grad, q, k, v, bias, out, lse, size, spacing, scale)

    @forward.register_fake
    def _(q, k, v, bias, size, spacing, scale):
        return q.new_empty(q.shape), q.new_empty(q.shape[:4], dtype=torch.float32)

    @backward.register_fake
    def _(grad, q, k, v, bias, out, lse, size, spacing, scale):
        dbias = q.new_empty(0) if bias is None else bias.new_empty(bias.shape)
        return *(q.new_empty(q.shape) for _ in range(3)), dbias

    def _save(ctx, inputs, output) -> None:
        q, k, v, bias, *ctx.settings = inputs
        ctx.backend = forced()
        ctx.save_for_backward(q, k, v, bias, *output)

    def _differentiate(ctx, grad, _):
        q, k, v, bias, out, lse = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a gradient of this gradient
            size, spacing, scale = ctx.settings

            def specified(q, k, v, bias):
                return reference(q, k, v, tuple(size), tuple(spacing), bias, scale)

            return *differentiable(specified, grad, q, k, v, bias), None, None, None
        with as_forced(ctx.backend):
            dq, dk, dv, dbias = backward(grad, q, k, v, bias, out, lse, *ctx.settings)
        return dq, dk, dv, None if bias is None else dbias, None, None, None

    forward.register_autograd(_differentiate, setup_context=_save)
    count_operations(operation, 4, keys=lambda _, settings: math.prod(settings[0]))
    return forward
