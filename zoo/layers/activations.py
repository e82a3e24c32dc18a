"""Activation functions by the names that configurations use.

They are for tensors that the caller has just computed: where no gradient is recorded the result takes their place.
A hidden layer is the largest tensor of most blocks, and fresh memory costs a CPU as much as the function itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional as F

Act = Literal["gelu", "gelu_tanh", "silu"]


def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """x times the normal distribution function of x, exact or by "tanh" (https://arxiv.org/abs/1606.08415)."""
    function = F.gelu if x.requires_grad else torch.ops.aten.gelu_
    return function(x, approximate=approximate)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU with the normal distribution function by tanh."""
    return gelu(x, "tanh")


def silu(x: torch.Tensor) -> torch.Tensor:
    """x times the logistic function of x."""
    return F.silu(x, inplace=not x.requires_grad)


def multiply(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x times a gate, broadcast to it, of the same type."""
    return x * gate if x.requires_grad or gate.requires_grad else x.mul_(gate)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}
