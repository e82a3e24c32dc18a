"""Bi-level routing attention (BiFormer, https://arxiv.org/abs/2303.08810, section 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from zoo.config.schema import Count
from zoo.kernels import region_routes, routing_attention
from zoo.kernels.sizes import crop_map, pad_to_multiple
from zoo.nn.layers import cpu
from zoo.nn.layers.conv import depthwise
from zoo.nn.layers.heads import count_heads, split_heads
from zoo.nn.registry import BRANCHES


@BRANCHES.register("routing")
class RoutingAttention(nn.Module):
    """Attention of the positions of each region of (B, H, W, dim) to those of the `topk` most related regions.

    A 5x5 depthwise convolution of the values is added before the projection. The logits are scaled by dim ** -0.5,
    not by the width of a head.

    Args:
        head_dim: channels of a head.
        topk: number of regions that a region attends to.
        regions: number of regions per side of the map; regions grow with the map.
        pad: what happens when `regions` does not divide the map. "input" pads the map with zeros before the projection,
            which take part as keys, values and in a region's mean. "projected" keeps regions of H // regions positions,
            as many as cover the map, and pads keys and values with zeros.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: Count,
        topk: Count,
        regions: Count = 7,
        pad: Literal["input", "projected"] = "input",
    ) -> None:
        super().__init__()
        if topk > regions**2:
            raise ValueError(f"topk is {topk}, but there are {regions} x {regions} regions")
        self.topk, self.regions, self.pad = topk, regions, pad
        self.heads, self.head_dim = count_heads(dim, head_dim), head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.lepe = depthwise(dim, 5)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width, dim = x.shape[1:]
        if self.pad == "input":
            x = pad_to_multiple(x, (self.regions, self.regions))
        region = (max(1, x.shape[1] // self.regions), max(1, x.shape[2] // self.regions))
        q, k, v = split_heads(cpu.linear(self.qkv, x), self.head_dim)
        routes = region_routes(q, k, region, self.topk)
        out = routing_attention(q, k, v, routes, region, dim**-0.5).flatten(3)
        out = out + cpu.conv(self.lepe, v.flatten(3))
        return crop_map(cpu.linear(self.proj, out), height, width)
