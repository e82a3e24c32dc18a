"""Cosine attention between all positions: the last stage of TransNeXt (https://arxiv.org/abs/2311.17132)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from zoo.config.schema import Count, Size
from zoo.kernels import global_attention
from zoo.nn.layers import cpu
from zoo.nn.layers.cosine import CosineQuery
from zoo.nn.layers.heads import count_heads, split_heads
from zoo.nn.layers.position_bias import PooledBias
from zoo.nn.registry import BRANCHES


@BRANCHES.register("cosine")
class CosineAttention(nn.Module):
    """Multi-head attention by the angle of queries and keys, over all positions of (B, H, W, dim).

    Args:
        head_dim: channels of a head.
        pretrained: (height, width) of the map in pre-training, by which distances are measured.
        trained: (height, width) of the map in training.
        position_bias: "extrapolation" computes the position bias for the actual map, "interpolation" resizes that
            of the map in training.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: Count,
        pretrained: Size,
        trained: Size,
        position_bias: Literal["extrapolation", "interpolation"] = "extrapolation",
    ) -> None:
        super().__init__()
        self.trained = trained
        self.heads, self.head_dim = count_heads(dim, head_dim), head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.query = CosineQuery(self.heads, head_dim)
        self.cpb = PooledBias(self.heads, pretrained, trained if position_bias == "interpolation" else None)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = tuple(x.shape[1:3])
        q, k, v = split_heads(cpu.linear(self.qkv, x), self.head_dim)
        # A tensor: the logarithm of a number would be compiled into the graph of one size.
        keys = torch.full((1, 1), shape[0] * shape[1], dtype=torch.float32, device=x.device)
        q = self.query(F.normalize(q, dim=-1), keys)
        k = F.normalize(k, dim=-1)
        bias = self.cpb(shape, shape, x, self.trained)
        out = global_attention(q.to(v.dtype), k.to(v.dtype), v, bias, scale=1.0)
        return cpu.linear(self.proj, out.flatten(3))
