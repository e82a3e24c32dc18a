"""Routing attention with regions before tokens in memory, for exported programs: whole regions of a head are gathered.

Nothing but the arguments and the output is transposed.
"""

from __future__ import annotations

import torch

from zoo.kernels.exporting import contiguous_if_exporting
from zoo.kernels.sizes import crop_map, pad_to_multiple


def routing_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: tuple[int, int], scale: float
) -> torch.Tensor:
    """See `api.routing_attention`."""
    (batch, height, width, heads, channels), (h, w) = q.shape, region
    q, k, v = (pad_to_multiple(t, region) for t in (q * scale, k, v))
    rows, columns = q.shape[1] // h, q.shape[2] // w
    regions, topk = routes.shape[1:]

    q, k, v = (t.reshape(batch, rows, h, columns, w, heads, channels).permute(0, 5, 1, 3, 2, 4, 6) for t in (q, k, v))
    q, k, v = (contiguous_if_exporting(t).reshape(batch * heads, regions, h * w, channels) for t in (q, k, v))
    first = torch.arange(batch * heads, device=q.device).unflatten(0, (batch, heads)) * regions
    chosen = (first[..., None, None] + routes[:, None]).flatten()
    k, v = (
        t.flatten(0, 1).index_select(0, chosen).reshape(batch * heads, regions, topk * h * w, channels) for t in (k, v)
    )

    out = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    out = out.reshape(batch, heads, rows, columns, h, w, channels).permute(0, 2, 4, 3, 5, 1, 6)
    out = contiguous_if_exporting(out).reshape(batch, rows * h, columns * w, heads, channels)
    return crop_map(out, height, width)
