"""Derivatives other than an ordinary backward pass, which are computed by the reference.

An operator defines only its gradient. Under `torch.func`, in forward mode and for a gradient of a gradient, PyTorch
must see the steps of an operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def transformed() -> bool:
    """Whether `torch.func` or forward-mode differentiation is active here; never in a compiled graph."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def scaled_dot_product_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, scale: float | None = None
) -> torch.Tensor:
    """PyTorch's function of that name, in its plain form where the fast forms have no derivative."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    if not transformed():
        return twice_differentiable(attend, attend, q, k, v, mask)
    with sdpa_kernel(SDPBackend.MATH):
        return attend(q, k, v, mask)


def twice_differentiable(
    fast: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor], *tensors: torch.Tensor | None
) -> torch.Tensor:
    """`fast(*tensors)`, whose gradient PyTorch cannot differentiate; gradients of gradients are those of `plain`."""
    needless = torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.is_grad_enabled()
    if needless or not any(t is not None and t.requires_grad for t in tensors):
        return fast(*tensors)
    return _TwiceDifferentiable.apply(fast, plain, *tensors)


class _TwiceDifferentiable(torch.autograd.Function):
    """Keeps the graph of `fast` for an ordinary backward pass."""

    @staticmethod
    def forward(ctx, fast, plain, *tensors):
        ctx.fast, ctx.plain = fast, plain
        ctx.save_for_backward(*tensors)
        ctx.graph = _graph(fast, tensors)
        return ctx.graph[0].detach()

    @staticmethod
    def backward(ctx, grad):
        """The gradients of `tensors`; `fast` and `plain` have none."""
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a gradient of this gradient
            return None, None, *differentiable(ctx.plain, grad, *tensors)
        # A second pass, with retain_graph=True, builds it anew: kept, it would outlive what autograd frees.
        out, leaves = ctx.graph or _graph(ctx.fast, tensors)
        ctx.graph = None
        return None, None, *_gradients(out, grad, leaves)


def _graph(
    function: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The output of `function` for copies of `tensors` that are leaves, and these."""
    leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors]
    with torch.enable_grad():
        return function(*leaves), leaves


def differentiable(
    reference: Callable[..., torch.Tensor], grad: torch.Tensor, *tensors: torch.Tensor | None
) -> list[torch.Tensor | None]:
    """Gradients of `reference(*tensors)` that can be differentiated again; None for tensors that need none."""
    with sdpa_kernel(SDPBackend.MATH):
        return _gradients(reference(*tensors), grad, tensors, create_graph=True)


def _gradients(
    out: torch.Tensor, grad: torch.Tensor, tensors: Sequence[torch.Tensor | None], create_graph: bool = False
) -> list[torch.Tensor | None]:
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    # An empty batch uses no bias, whose gradient is then zero.
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=create_graph, materialize_grads=True))
    return [next(found) if t is not None and t.requires_grad else None for t in tensors]
