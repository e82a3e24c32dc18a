"""Aggregated attention (TransNeXt, https://arxiv.org/abs/2311.17132, section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from zoo.config.schema import Count, Size
from zoo.kernels import aggregated_attention
from zoo.kernels.exporting import contiguous_if_exporting, exporting
from zoo.kernels.per_size import per_size
from zoo.nn.layers import cpu
from zoo.nn.layers.cosine import CosineQuery
from zoo.nn.layers.heads import count_heads, split_heads
from zoo.nn.layers.position_bias import PooledBias
from zoo.nn.registry import BRANCHES

SIZE = 3


@BRANCHES.register("aggregated")
class AggregatedAttention(nn.Module):
    """Cosine attention of every position of (B, H, W, dim) to the 3x3 around it and to a pooled map, in one softmax.

    Args:
        head_dim: channels of a head.
        pool: the pooled map is this many times smaller on each side, rounded down.
        fixed_pool_size: (height, width) of the pooled map for maps of any size (the linear mode); None to use `pool`.
        pretrained: (height, width) of the map in pre-training, by which distances are measured.
        trained: (height, width) of the map in training.
        position_bias: "extrapolation" computes the bias of the pooled keys for the actual map, "interpolation"
            resizes that of the map in training.
    """

    POINTWISE = ("sr",)

    def __init__(
        self,
        dim: int,
        *,
        head_dim: Count,
        pool: Count,
        pretrained: Size,
        trained: Size,
        fixed_pool_size: Size | None = None,
        position_bias: Literal["extrapolation", "interpolation"] = "extrapolation",
    ) -> None:
        super().__init__()
        self.pool, self.fixed_pool_size, self.trained = pool, fixed_pool_size, trained
        heads = count_heads(dim, head_dim)
        self.heads, self.head_dim = heads, head_dim
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.query = CosineQuery(heads, head_dim)
        self.sr = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.cpb = PooledBias(heads, pretrained, trained if position_bias == "interpolation" else None)
        self.local_bias = nn.Parameter(torch.empty(heads, SIZE**2))
        self.tokens = nn.Parameter(torch.empty(heads, head_dim, SIZE**2))
        self.token_bias = nn.Parameter(torch.zeros(heads, SIZE**2))
        nn.init.trunc_normal_(self.local_bias, std=0.0004)
        nn.init.trunc_normal_(self.tokens, std=0.02)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (x.shape[1], x.shape[2])
        pooled = self._pooled(shape)
        (q,) = split_heads(cpu.linear(self.q, x), self.head_dim, parts=1)
        k, v = split_heads(cpu.linear(self.kv, x), self.head_dim, parts=2)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        extra = torch.einsum("bhwnd,ndl->bhwnl", q, self.tokens) + self.token_bias
        q = self.query(q, neighbor_counts(*shape, device=x.device) + pooled[0] * pooled[1])
        pooled_k, pooled_v = split_heads(cpu.linear(self.kv, self._summary(x, pooled)), self.head_dim, parts=2)
        pooled_k = F.normalize(pooled_k, dim=-1)
        bias = self.cpb(shape, pooled, x, self._pooled(self.trained))
        tensors = (q, k, v, pooled_k, pooled_v, self.local_bias, bias, extra)
        out = aggregated_attention(*(t if t.dtype == v.dtype else t.to(v.dtype) for t in tensors), size=SIZE)
        return cpu.linear(self.proj, out.flatten(3))

    def _pooled(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the pooled map of a map of `shape`."""
        if self.fixed_pool_size is not None:
            return min(shape[0], self.fixed_pool_size[0]), min(shape[1], self.fixed_pool_size[1])
        return max(1, shape[0] // self.pool), max(1, shape[1] // self.pool)

    def _summary(self, x: torch.Tensor, pooled: tuple[int, int]) -> torch.Tensor:
        """(B, H, W, dim) to the normalised (B, h, w, dim) that pooled keys and values are made of."""
        x = cpu.linear(self.sr, x, F.gelu)
        if exporting():  # no runtime has adaptive pooling for unknown sizes
            sides = zip(x.shape[1:3], pooled, strict=True)
            rows, columns = (pooling(*side, device=x.device).to(x.dtype) for side in sides)
            x = F.linear(contiguous_if_exporting(x.permute(0, 2, 3, 1)), rows)  # (B, W, dim, h)
            x = F.linear(contiguous_if_exporting(x.permute(0, 3, 2, 1)), columns)  # (B, h, dim, w)
            return self.norm(contiguous_if_exporting(x.permute(0, 1, 3, 2)))
        return self.norm(F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), pooled).permute(0, 2, 3, 1).contiguous())


@per_size
def pooling(length: int, pooled: int, *, device: torch.device) -> torch.Tensor:
    """The matrix (pooled, length) of adaptive average pooling along one axis."""
    key, position = torch.arange(pooled, device=device)[:, None], torch.arange(length, device=device)
    inside = (position >= key * length // pooled) & (position <= ((key + 1) * length - 1) // pooled)
    return inside / inside.sum(1, keepdim=True)


@per_size
def neighbor_counts(height: int, width: int, *, device: torch.device) -> torch.Tensor:
    """How many positions of the 3x3 around each position lie inside the map, (height, width), float32."""
    around = torch.arange(-(SIZE // 2), SIZE // 2 + 1, device=device)
    near = ((n, torch.arange(n, device=device)[:, None] + around) for n in (height, width))
    rows, columns = (((p >= 0) & (p < n)).float().sum(1) for n, p in near)
    return rows[:, None] * columns
