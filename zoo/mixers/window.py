"""Window and grid attention (DaViT, MaxViT)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from zoo.kernels import window_attention
from zoo.kernels.partition import partition, unpartition
from zoo.layers.conv import pad_to_multiple
from zoo.layers.linear import Linear, QkvLinear
from zoo.layers.position_bias import MlpBias, TableBias
from zoo.registry import BRANCHES
from zoo.schema import Count, Size


@BRANCHES.register("window")
class WindowAttention(nn.Module):
    """Multi-head attention inside groups of `size` tokens, on (B, H, W, dim).

    Args:
        head_dim: channels of a head.
        size: tokens of a group, (height, width).
        interval: "grid" spreads each group over the whole map, ceil(H / height) pixels apart; 1 is a window.
        pos_bias: a learned relative position bias: a table, or a network of the offset.
        pad: what stands beyond the map when `size` does not divide it. "masked" positions are never seen;
            "zeros" takes part as keys and values, the rule of DaViT's published weights.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: Count,
        size: Size,
        interval: Literal[1, "grid"] = 1,
        pos_bias: Literal["table", "mlp"] | None = None,
        pad: Literal["masked", "zeros"] = "masked",
    ) -> None:
        super().__init__()
        self.size, self.interval, self.pad = size, interval, pad
        self.qkv = QkvLinear(dim, head_dim)
        bias = {"table": TableBias, "mlp": MlpBias}.get(pos_bias)
        self.pos_bias = None if bias is None else bias(dim // head_dim, size)
        self.proj = Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        interval = (1, 1)
        if self.interval == "grid":
            interval = tuple(-(-n // s) for n, s in zip((height, width), self.size, strict=True))
        step = (self.size[0] * interval[0], self.size[1] * interval[1])
        if self.pad == "zeros":
            x = pad_to_multiple(x, step)
        bias = None if self.pos_bias is None else self.pos_bias()
        if x.shape[1] % step[0] or x.shape[2] % step[1]:
            return self.proj(window_attention(*self.qkv(x), self.size, interval, bias).flatten(3))
        return self._attend_groups(x, interval, bias)[:, :height, :width]

    def _attend_groups(self, x: torch.Tensor, interval: tuple[int, int], bias: torch.Tensor | None) -> torch.Tensor:
        """The same on a map that the groups cover exactly, with each group laid out as a row of a map.

        Regrouping the input copies it once; regrouping queries, keys and values behind the projection, three times.
        """
        rows = partition(x, self.size, interval)
        out = window_attention(*self.qkv(rows), (1, rows.shape[2]), bias=bias)
        return unpartition(self.proj(out.flatten(3)), self.size, interval, x.shape[1:3])
