"""Attention between all positions of a map (ViT; the last stage of BiFormer and LITv2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from zoo.config.schema import Count, Size
from zoo.kernels import global_attention
from zoo.nn.layers import cpu
from zoo.nn.layers.conv import depthwise
from zoo.nn.layers.heads import count_heads, split_heads
from zoo.nn.layers.position_bias import TableBias
from zoo.nn.registry import BRANCHES


@BRANCHES.register("global")
class GlobalAttention(nn.Module):
    """Multi-head attention over all positions of (B, H, W, dim).

    Args:
        head_dim: channels of a head.
        qkv_bias: whether queries, keys and values have a bias.
        pos_bias: (height, width) of the map in training, for a table of relative position biases that is resized
            for maps of another size; None for no such bias.
        lepe: add a 5x5 depthwise convolution of the values, or of the input, before the projection
            (https://arxiv.org/abs/2107.00652, section 3.2).
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: Count,
        qkv_bias: bool = True,
        pos_bias: Size | None = None,
        lepe: Literal["values", "input"] | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = count_heads(dim, head_dim), head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.pos_bias = None if pos_bias is None else TableBias(self.heads, pos_bias)
        self.lepe_of = lepe
        self.lepe = None if lepe is None else depthwise(dim, 5)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = split_heads(cpu.linear(self.qkv, x), self.head_dim)
        bias = None if self.pos_bias is None else self.pos_bias(tuple(x.shape[1:3]), x)
        out = global_attention(q, k, v, bias).flatten(3)
        if self.lepe is not None:
            out = out + cpu.conv(self.lepe, x if self.lepe_of == "input" else v.flatten(3))
        return cpu.linear(self.proj, out)
