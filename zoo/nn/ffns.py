"""Feed-forward branches, which mix channels, and positions at most with their neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zoo.config.schema import Positive
from zoo.nn.layers import cpu
from zoo.nn.layers.activations import ACTIVATIONS, Act
from zoo.nn.layers.conv import depthwise
from zoo.nn.registry import BRANCHES


@BRANCHES.register("mlp")
class Mlp(nn.Module):
    """Linear, activation, linear on (B, H, W, dim), with a hidden layer of int(dim * ratio) channels.

    Args:
        act: the activation.
        dwconv: add a 3x3 depthwise convolution before the activation (LITv2, arXiv:2205.13213, section 3).
        gated: use two thirds of the hidden width, and multiply the activation by a second projection of the input (with
            `dwconv` TransNeXt's convolutional GLU, https://arxiv.org/abs/2311.17132, section 3.4).
    """

    def __init__(
        self, dim: int, *, ratio: Positive, act: Act = "gelu", dwconv: bool = False, gated: bool = False
    ) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        if gated:
            hidden = 2 * hidden // 3
        if hidden < 1:
            raise ValueError(f"ratio {ratio} of {dim} channels leaves none")
        self.gated = gated
        self.fc1 = nn.Linear(dim, 2 * hidden if gated else hidden)
        self.dwconv = None
        if dwconv:
            self.dwconv = depthwise(hidden)
            nn.init.normal_(self.dwconv.weight, std=math.sqrt(2 / 9))
            nn.init.zeros_(self.dwconv.get_parameter("bias"))
        self.act = ACTIVATIONS[act]
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gated:
            x, gate = cpu.linear_halves(self.fc1, x)
            return cpu.linear(self.fc2, cpu.multiply(self._activated(x), gate, self.fc1, self.dwconv or self.fc1))
        if self.dwconv is None:
            return cpu.mlp(self.fc1, self.fc2, x, self.act)
        return cpu.linear(self.fc2, self._activated(cpu.linear(self.fc1, x)))

    @staticmethod
    def dilated(params: Mapping[str, Any], dilation: int) -> Mapping[str, Any] | None:
        """The keys for an input that is `dilation` times finer; None for a network that sees neighbours."""
        return None if params.get("dwconv") else params

    def _activated(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x) if self.dwconv is None else cpu.conv(self.dwconv, x, self.act)
