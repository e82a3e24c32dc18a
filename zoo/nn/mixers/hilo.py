"""HiLo attention (LITv2, https://arxiv.org/abs/2205.13213, section 3.2)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from zoo.config.schema import Count, Range, Size
from zoo.kernels import global_attention, window_attention
from zoo.kernels.sizes import crop_map, pad_to_multiple
from zoo.nn.layers import cpu
from zoo.nn.layers.heads import count_heads, split_heads
from zoo.nn.registry import BRANCHES


@BRANCHES.register("hilo")
class HiLoAttention(nn.Module):
    """Some heads attend within windows of (B, H, W, dim), the others from every position to averaged windows.

    A map not divisible by `size` is padded at the right and the bottom with zeros, which take part as keys and values.
    The output holds the window heads first; each part has its own projection.

    Args:
        head_dim: channels of a head.
        alpha: share of the heads for low frequencies, which attend to averages; rounded down.
        size: of a window, (height, width).
    """

    labels = {"window_attention": "high frequencies", "global_attention": "low frequencies"}

    def __init__(
        self, dim: int, *, head_dim: Count, alpha: Annotated[float, Range(0.0, 1.0)], size: Size = (2, 2)
    ) -> None:
        super().__init__()
        heads = count_heads(dim, head_dim)
        low = int(heads * alpha) * head_dim
        high = dim - low
        self.size, self.head_dim = size, head_dim
        self.high, self.low = high > 0, low > 0
        if self.high:
            self.hi_qkv = nn.Linear(dim, 3 * high)
            self.hi_proj = nn.Linear(high, high)
        if self.low:
            self.lo_q = nn.Linear(dim, low)
            self.lo_kv = nn.Linear(dim, 2 * low)
            self.lo_proj = nn.Linear(low, low)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.size)
        parts = []
        if self.high:
            q, k, v = split_heads(cpu.linear(self.hi_qkv, x), self.head_dim)
            parts.append(cpu.linear(self.hi_proj, window_attention(q, k, v, self.size).flatten(3)))
        if self.low:
            parts.append(cpu.linear(self.lo_proj, self._attend_averages(x).flatten(3)))
        return crop_map(torch.cat(parts, dim=-1), height, width)

    def _attend_averages(self, x: torch.Tensor) -> torch.Tensor:
        averages = F.avg_pool2d(x.permute(0, 3, 1, 2), self.size).permute(0, 2, 3, 1)
        (q,) = split_heads(cpu.linear(self.lo_q, x), self.head_dim, parts=1)
        k, v = split_heads(cpu.linear(self.lo_kv, averages), self.head_dim, parts=2)
        return global_attention(q, k, v)
