"""Feed-forward branches: no mixing between positions."""

from __future__ import annotations

import torch
from torch import nn

from zoo.layers.activations import ACTIVATIONS, Act
from zoo.layers.linear import Linear
from zoo.registry import BRANCHES
from zoo.schema import Positive


@BRANCHES.register("mlp")
class Mlp(nn.Module):
    """Linear, activation, linear on (B, H, W, dim), with a hidden layer of int(dim * ratio) channels."""

    def __init__(self, dim: int, *, ratio: Positive, act: Act = "gelu") -> None:
        super().__init__()
        hidden = int(dim * ratio)
        if hidden < 1:
            raise ValueError(f"ratio {ratio} of {dim} channels leaves none")
        self.fc1 = Linear(dim, hidden)
        self.act = ACTIVATIONS[act]
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))
