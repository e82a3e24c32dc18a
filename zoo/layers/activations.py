"""Activation functions by the names that configurations use.

They are for tensors that the caller has just computed: where no gradient is recorded the result takes their place.
A hidden layer is the largest tensor of most blocks, and fresh memory costs a CPU as much as the function itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional as F

from zoo.kernels.exporting import exporting

Act = Literal["gelu", "gelu_tanh", "silu"]


def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """x times the normal distribution function of x, exact or by "tanh" (https://arxiv.org/abs/1606.08415)."""
    function = torch.ops.aten.gelu_ if _may_overwrite(x) else F.gelu
    return function(x, approximate=approximate)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU with the normal distribution function by tanh."""
    return gelu(x, "tanh")


def silu(x: torch.Tensor) -> torch.Tensor:
    """x times the logistic function of x."""
    return F.silu(x, inplace=_may_overwrite(x))


def multiply(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x times a gate, broadcast to it, of the same type."""
    return x.mul_(gate) if _may_overwrite(x, gate) else x * gate


def _may_overwrite(*tensors: torch.Tensor) -> bool:
    """Whether no gradient is recorded, and no operation for a runtime that may know the ones out of place alone."""
    return not exporting() and not any(t.requires_grad for t in tensors)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}
