"""Derivatives other than an ordinary backward pass, which are computed by the reference.

An operator defines only its gradient. Under `torch.func`, in forward mode and for a gradient of a gradient, PyTorch
must see the steps of an operation.
"""

from __future__ import annotations

from collections.abc import Callable

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
    if not transformed():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def differentiable(
    reference: Callable[..., torch.Tensor], grad: torch.Tensor, *tensors: torch.Tensor | None
) -> list[torch.Tensor | None]:
    """Gradients of `reference(*tensors)` that can be differentiated again; None for tensors that need none."""
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        found = iter(torch.autograd.grad(reference(*tensors), wanted, grad, create_graph=True))
    return [next(found) if t is not None and t.requires_grad else None for t in tensors]
