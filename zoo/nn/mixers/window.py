"""Window, grid and strided group attention (DaViT, MaxViT, CrossFormer)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from zoo.config.schema import Count, Size
from zoo.kernels import window_attention
from zoo.kernels.sizes import ceil_div, crop_map, pad_to_multiple
from zoo.nn.layers import cpu
from zoo.nn.layers.heads import count_heads, split_heads
from zoo.nn.layers.position_bias import DynamicBias, MlpBias, PositionBias, TableBias
from zoo.nn.registry import BRANCHES


@BRANCHES.register("window")
class WindowAttention(nn.Module):
    """Multi-head attention within groups of `size` tokens, on (B, H, W, dim).

    Args:
        head_dim: channels of a head.
        size: tokens of a group, (height, width).
        interval: pixels from one token of a group to the next; 1 is a window; "grid" spreads each group over the
            whole map, ceil(H / height) pixels apart.
        pos_bias: a learned relative position bias: a table, or a network of the offset.
        pad: how the map is padded if `size` does not divide it. "masked" positions are never attended to; "zeros" take
            part as keys and values, as for DaViT's published weights.
        shrink: on a map whose shorter side is no longer than the group, use windows of that side instead (CrossFormer's
            rule).

    Attributes:
        labels: what `zoo.explain` calls the keys of an operation.
        min_side: for maps whose shorter side is at least this, the groups follow the same rule at every size.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: Count,
        size: Size,
        interval: Count | Literal["grid"] = 1,
        pos_bias: Literal["table", "mlp", "dynamic"] | None = None,
        pad: Literal["masked", "zeros"] = "masked",
        shrink: bool = False,
    ) -> None:
        super().__init__()
        if shrink and pos_bias == "table":
            raise ValueError("a table of position biases has one size: with shrink, pos_bias must be a network")
        self.size, self.interval, self.pad, self.shrink = size, interval, pad, shrink
        label = {1: "short distance" if shrink else "window", "grid": "grid"}.get(interval, "long distance")
        self.labels = {"window_attention": label}
        self.min_side = min(size) + (interval != 1) if shrink else 1
        self.heads, self.head_dim = count_heads(dim, head_dim), head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.pos_bias: PositionBias | None = None
        if pos_bias == "table":
            self.pos_bias = TableBias(self.heads, size)
        elif pos_bias == "mlp":
            self.pos_bias = MlpBias(self.heads)
        elif pos_bias == "dynamic":
            self.pos_bias = DynamicBias(self.heads, dim // 16)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        size, interval = self._groups(height, width)
        if self.pad == "zeros":
            x = pad_to_multiple(x, (size[0] * interval[0], size[1] * interval[1]))
        bias = None if self.pos_bias is None else self.pos_bias(size, x)
        q, k, v = split_heads(cpu.linear(self.qkv, x), self.head_dim)
        out = window_attention(q, k, v, size, interval, bias)
        return cpu.linear(self.proj, crop_map(out, height, width).flatten(3))

    def _groups(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size and interval of the groups on a map."""
        if self.shrink and (height < self.min_side or width < self.min_side):
            return (min(height, width),) * 2, (1, 1)
        if self.interval == "grid":
            return self.size, (ceil_div(height, self.size[0]), ceil_div(width, self.size[1]))
        return self.size, (self.interval,) * 2
