"""Activation functions by the names that configurations use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional as F

Act = Literal["gelu", "gelu_tanh", "silu"]


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU (https://arxiv.org/abs/1606.08415) with the tanh approximation of the normal distribution function."""
    return F.gelu(x, approximate="tanh")


Activation = Callable[[torch.Tensor], torch.Tensor]

ACTIVATIONS: dict[str, Activation] = {"gelu": F.gelu, "gelu_tanh": gelu_tanh, "silu": F.silu}
