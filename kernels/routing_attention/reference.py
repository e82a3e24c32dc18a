"""Attention to chosen regions in plain PyTorch: the specification, on any device and in any dtype."""

from __future__ import annotations

import torch

from zoo.kernels.exporting import contiguous_if_exporting
from zoo.kernels.partition import partition, unpartition
from zoo.kernels.sizes import crop_map, pad_to_multiple
from zoo.kernels.transforms import scaled_dot_product_attention


def routing_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: tuple[int, int], scale: float
) -> torch.Tensor:
    """See `api.routing_attention`."""
    batch, height, width = q.shape[:3]
    q, k, v = (pad_to_multiple(t, region) for t in (q, k, v))
    filled = (q.shape[1], q.shape[2])
    q, k, v = (partition(t, region, (1, 1)) for t in (q, k, v))
    regions, topk = routes.shape[1:]
    image = torch.arange(batch, device=q.device)[:, None]
    k, v = (t[image, routes.flatten(1)].unflatten(1, (regions, topk)).flatten(2, 3) for t in (k, v))
    q, k, v = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))  # (B * regions, heads, tokens, head_dim)
    out = scaled_dot_product_attention(q, k, v, scale=scale)
    out = contiguous_if_exporting(out.transpose(1, 2)).unflatten(0, (batch, regions))
    return crop_map(unpartition(out, region, (1, 1), filled), height, width)


def region_routes(q: torch.Tensor, k: torch.Tensor, region: tuple[int, int], topk: int) -> torch.Tensor:
    """See `api.region_routes`."""
    return region_scores(q, k, region).argsort(dim=-1, descending=True, stable=True)[..., :topk]


def region_scores(q: torch.Tensor, k: torch.Tensor, region: tuple[int, int]) -> torch.Tensor:
    """See `api.region_scores`."""
    q, k = (_region_means(t.detach(), region) for t in (q, k))
    kind = q.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):  # it would multiply in half precision
            return q @ k.mT
    return q @ k.mT


def _region_means(x: torch.Tensor, region: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, heads, head_dim) to the mean over each region's positions inside the map, (B, regions, channels)."""
    (height, width), (h, w) = x.shape[1:3], region
    x = pad_to_multiple(x.flatten(3), region)
    batch, filled_height, filled_width, channels = x.shape
    x = x.reshape(batch, filled_height // h, h, filled_width // w, w, channels)
    sums = x.sum(4, dtype=torch.promote_types(x.dtype, torch.float32)).sum(2).flatten(1, 2)
    rows, columns = (
        (n - torch.arange(0, n, r, device=x.device)).clamp(max=r) for n, r in zip((height, width), region, strict=True)
    )
    return sums / (rows[:, None] * columns).flatten()[:, None]
