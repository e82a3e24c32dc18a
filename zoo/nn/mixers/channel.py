"""Channel group attention (DaViT, https://arxiv.org/abs/2204.03645, section 3.3)."""

from __future__ import annotations

import torch
from torch import nn

from zoo.config.schema import Count
from zoo.kernels import channel_attention
from zoo.nn.layers import cpu
from zoo.nn.layers.heads import count_heads, split_heads
from zoo.nn.registry import BRANCHES


@BRANCHES.register("channel")
class ChannelAttention(nn.Module):
    """Attention between the channels of each group of `head_dim`, over all positions of (B, H, W, dim)."""

    def __init__(self, dim: int, *, head_dim: Count) -> None:
        super().__init__()
        self.heads, self.head_dim = count_heads(dim, head_dim), head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = split_heads(cpu.linear(self.qkv, x), self.head_dim)
        return cpu.linear(self.proj, channel_attention(q, k, v).flatten(3))
