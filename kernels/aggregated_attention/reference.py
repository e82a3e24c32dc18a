"""Aggregated attention in plain PyTorch: the specification, on any device and in any dtype."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def aggregated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pooled_k: torch.Tensor,
    pooled_v: torch.Tensor,
    local_bias: torch.Tensor,
    pooled_bias: torch.Tensor,
    extra: torch.Tensor,
    size: int,
) -> torch.Tensor:
    """See `api.aggregated_attention`."""
    shape = tuple(q.shape[1:3])
    inside = _neighbors(torch.ones(1, *shape, 1, 1, dtype=torch.bool, device=q.device), size)
    local = (q[..., None, :] @ _neighbors(k, size).mT)[..., 0, :] + local_bias
    local = local.masked_fill(~inside[..., 0], float("-inf"))

    flat_q = q.flatten(1, 2).transpose(1, 2)  # (B, heads, HW, head_dim)
    flat_k, flat_v = (t.flatten(1, 2).transpose(1, 2) for t in (pooled_k, pooled_v))
    pooled = flat_q @ flat_k.mT + pooled_bias

    local = local.flatten(1, 2).transpose(1, 2)
    weights = torch.cat([local, pooled], dim=-1).softmax(-1).to(v.dtype)
    local, pooled = weights.split([size * size, pooled.shape[-1]], dim=-1)

    local = local.transpose(1, 2).unflatten(1, shape) + extra
    near = (local[..., None, :] @ _neighbors(v, size))[..., 0, :]
    return near + (pooled @ flat_v).transpose(1, 2).unflatten(1, shape)


def _neighbors(x: torch.Tensor, size: int) -> torch.Tensor:
    """(B, H, W, heads, d) to the size x size window around each position, (B, H, W, heads, size**2, d).

    Row-major; zeros beyond the map.
    """
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, 0, *(size // 2,) * 4))
    shifted = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return torch.stack(shifted, dim=-2)
