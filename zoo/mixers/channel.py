"""Channel group attention (DaViT, https://arxiv.org/abs/2204.03645, section 3.3)."""

from __future__ import annotations

import torch
from torch import nn

from zoo.kernels import channel_attention
from zoo.layers.linear import HeadsLinear, Linear
from zoo.registry import BRANCHES
from zoo.schema import Count


@BRANCHES.register("channel")
class ChannelAttention(nn.Module):
    """Attention between the channels of each group of `head_dim`, over all positions of (B, H, W, dim)."""

    def __init__(self, dim: int, *, head_dim: Count) -> None:
        super().__init__()
        self.qkv = HeadsLinear(dim, head_dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(channel_attention(*self.qkv(x)).flatten(3))
