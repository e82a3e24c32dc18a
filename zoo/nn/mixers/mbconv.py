"""Inverted bottleneck convolution with squeeze and excitation (MaxViT, https://arxiv.org/abs/2204.01697)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from zoo.config.model import Norm
from zoo.config.schema import Count, Positive
from zoo.nn.layers import cpu
from zoo.nn.layers.activations import ACTIVATIONS, Act
from zoo.nn.layers.conv import depthwise, least_padding
from zoo.nn.layers.norm import build_norm, fold_after, fold_before
from zoo.nn.registry import BRANCHES, SHORTCUTS


class SqueezeExcite(nn.Module):
    """(B, H, W, dim) to a gate of each channel, (B, 1, 1, dim), computed from the mean over all positions."""

    POINTWISE = ("fc1", "fc2")

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.silu(self.fc1(x.mean(dim=(1, 2), keepdim=True)))).sigmoid()


@BRANCHES.register("mbconv")
class MBConv(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, squeeze and excitation, 1x1 projection.

    Args:
        inner_norm: norm after the expansion and after the depthwise convolution.
        act: activation after each of the two.
        expand: whether the hidden width is `ratio` times the output's or the input's width.
        stride: of the depthwise convolution.
        padding: of the depthwise convolution: "same" as in TensorFlow, or one zero on every side.
        bias: of the projection.
    """

    POINTWISE = ("conv1", "conv3")

    def __init__(
        self,
        dim_in: int,
        dim: int,
        *,
        inner_norm: Norm,
        act: Act,
        expand: Literal["output", "input"] = "output",
        ratio: Positive,
        stride: Count = 1,
        padding: Literal["same", 1] = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.reduction = stride
        hidden = int(ratio * (dim if expand == "output" else dim_in))
        if hidden < 16:
            raise ValueError(f"ratio {ratio} gives {hidden} hidden channels, at least 16 are needed")
        self.conv1 = nn.Linear(dim_in, hidden, bias=False)
        self.norm1 = build_norm(inner_norm, hidden)
        self.same = padding == "same"
        zeros = least_padding(3, stride) if padding == "same" else padding
        self.conv2 = depthwise(hidden, 3, stride, zeros, bias=False)
        self.norm2 = build_norm(inner_norm, hidden)
        self.se = SqueezeExcite(hidden, hidden // 16)
        self.conv3 = nn.Linear(hidden, dim, bias=bias)
        self.act = ACTIVATIONS[act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, dim_in) to (B, ceil(H / stride), ceil(W / stride), dim)."""
        x = cpu.linear_norm(self.conv1, self.norm1, x, self.act)
        x = cpu.conv_norm(self.conv2, self.norm2, x, self.act, self.same)
        return cpu.linear(self.conv3, cpu.multiply(x, self.se(x), self.se))

    def fold(self) -> None:
        """Fold batch norms into the preceding convolutions."""
        self.norm1, self.norm2 = fold_after(self.conv1, self.norm1), fold_after(self.conv2, self.norm2)

    def fold_input(self, norm: nn.Module) -> nn.Module:
        """Fold the batch norm of the input into the first convolution. Returns what remains of the norm."""
        return fold_before(norm, self.conv1)


@SHORTCUTS.register("pool")
class PoolShortcut(nn.Module):
    """2x2 average pool and, where the width changes, a 1x1 projection; padding of odd sides is not averaged in."""

    reduction = 2
    POINTWISE = ("proj",)

    def __init__(self, dim_in: int, dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Identity() if dim_in == dim else nn.Linear(dim_in, dim, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(x.permute(0, 3, 1, 2), 2, ceil_mode=True, count_include_pad=False)
        return self.proj(x.permute(0, 2, 3, 1))
