"""Window attention in plain PyTorch: the specification, on any device and in any dtype."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.kernels.partition import partition, unpartition


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    size: tuple[int, int],
    interval: tuple[int, int],
    bias: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """See `api.window_attention`."""
    batch, height, width = q.shape[:3]
    bottom, right = (-n % (s * i) for n, s, i in zip((height, width), size, interval, strict=True))
    q, k, v = (partition(_extend(t, bottom, right), size, interval) for t in (q, k, v))
    groups = q.shape[1]
    q, k, v = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))
    mask = None if bias is None else bias[None].to(q.dtype)
    if bottom or right:
        padding = _padding_mask((height, width), (bottom, right), size, interval, q)
        mask = padding if mask is None else padding + mask
        mask = mask.repeat(batch, 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    out = out.transpose(1, 2).unflatten(0, (batch, groups))
    out = unpartition(out, size, interval, (height + bottom, width + right))
    return out[:, :height, :width]


def _extend(x: torch.Tensor, bottom: int, right: int) -> torch.Tensor:
    """(B, H, W, heads, d) with zeros below and to the right."""
    return F.pad(x, (0, 0, 0, 0, 0, right, 0, bottom)) if bottom or right else x


def _padding_mask(
    shape: tuple[int, int],
    added: tuple[int, int],
    size: tuple[int, int],
    interval: tuple[int, int],
    like: torch.Tensor,
) -> torch.Tensor:
    """(groups, 1, tokens, tokens): 0 for keys of the map, a large negative number for the added ones.

    Finite, so that a group without a single real key still has a softmax and a gradient.
    """
    extended = [n + a for n, a in zip(shape, added, strict=True)]
    rows, columns = (torch.arange(e, device=like.device) < n for e, n in zip(extended, shape, strict=True))
    real = partition((rows[:, None] & columns[None, :])[None, ..., None], size, interval)[0, :, :, 0]
    mask = torch.zeros(real.shape, dtype=like.dtype, device=like.device)
    mask = mask.masked_fill(~real, torch.finfo(like.dtype).min / 2)
    return mask[:, None, None, :].expand(-1, -1, real.shape[1], -1)
