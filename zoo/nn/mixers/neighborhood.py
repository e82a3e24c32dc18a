"""Neighborhood attention (NAT, https://arxiv.org/abs/2204.07143; DiNAT, https://arxiv.org/abs/2209.15001)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zoo.config.schema import Count, Size
from zoo.kernels import neighborhood_attention
from zoo.kernels.sizes import crop_map, pad_to_least
from zoo.nn.layers import cpu
from zoo.nn.layers.heads import count_heads, split_heads
from zoo.nn.layers.position_bias import OffsetTable
from zoo.nn.registry import BRANCHES


@BRANCHES.register("neighborhood")
class NeighborhoodAttention(nn.Module):
    """Attention of every position of (B, H, W, dim) to its nearest neighbours, with a relative position bias.

    A map smaller than size * dilation is padded at the right and the bottom with zeros, which take part as keys and
    values. This is the rule of NATTEN up to 0.15, with which the published weights were trained.

    Args:
        head_dim: channels of a head.
        size: neighbours of a position, (height, width), odd.
        dilation: pixels between neighbours.
    """

    def __init__(self, dim: int, *, head_dim: Count, size: Size, dilation: Size = (1, 1)) -> None:
        super().__init__()
        if not all(n % 2 for n in size):
            raise ValueError(f"size is {size}, expected odd numbers: a query stands in the middle of its window")
        self.size, self.dilation = size, dilation
        self.heads, self.head_dim = count_heads(dim, head_dim), head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.pos_bias = OffsetTable(self.heads, size)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        x = pad_to_least(x, (self.size[0] * self.dilation[0], self.size[1] * self.dilation[1]))
        q, k, v = split_heads(cpu.linear(self.qkv, x), self.head_dim)
        out = neighborhood_attention(q, k, v, self.size, self.dilation, self.pos_bias().to(q.dtype))
        return cpu.linear(self.proj, crop_map(out, height, width).flatten(3))

    @staticmethod
    def dilated(params: Mapping[str, Any], dilation: int) -> Mapping[str, Any]:
        """The keys for an input that is `dilation` times finer."""
        own = params.get("dilation", 1)
        return {**params, "dilation": [n * dilation for n in own] if isinstance(own, list | tuple) else own * dilation}
