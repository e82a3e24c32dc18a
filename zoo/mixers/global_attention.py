"""Attention between all positions of a map (ViT; the last stage of BiFormer and LITv2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from zoo.kernels import global_attention
from zoo.layers.conv import DepthwiseConv
from zoo.layers.linear import HeadsLinear, Linear
from zoo.layers.position_bias import TableBias
from zoo.registry import BRANCHES
from zoo.schema import Count, Size


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
        self.qkv = HeadsLinear(dim, head_dim, bias=qkv_bias)
        self.pos_bias = None if pos_bias is None else TableBias(self.qkv.heads, pos_bias)
        self.lepe_of = lepe
        self.lepe = None if lepe is None else DepthwiseConv(dim, 5)
        self.proj = Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x)
        bias = None if self.pos_bias is None else self.pos_bias(tuple(x.shape[1:3]))
        out = global_attention(q, k, v, bias).flatten(3)
        if self.lepe is not None:
            out = out + self.lepe(x if self.lepe_of == "input" else v.flatten(3))
        return self.proj(out)
