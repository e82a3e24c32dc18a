"""Aggregated attention by tiles of queries, for exported programs: a few gathers, and dense products of matrices.

The queries of a tile are multiplied with all positions in any of their windows, the halo of the tile. A bias
removes those outside a query's own window or outside the map.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.kernels.exporting import UNSEEN
from zoo.kernels.per_size import per_size
from zoo.kernels.sizes import ceil_div

TILE = 4
"""The side of a tile. Larger tiles copy fewer keys, smaller ones compute fewer pairs in vain."""


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
    height, width = q.shape[1:3]
    halo = (TILE + size - 1) ** 2
    tiles, queries, keys, outside, home = plan(height, width, size, device=q.device)
    taps, spread = pairs(size, device=q.device)

    def gather(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return x.flatten(1, 2).transpose(1, 2).index_select(2, positions)  # (B, heads, positions, channels)

    q = gather(q, queries)
    k, v = (gather(_surround(t, size), keys).unflatten(2, (tiles, halo)) for t in (k, v))
    pooled_k, pooled_v = (t.flatten(1, 2).transpose(1, 2) for t in (pooled_k, pooled_v))

    bias = F.pad(local_bias, (0, 1), value=UNSEEN).index_select(1, taps).unflatten(1, (1, TILE**2, halo))
    local = q.unflatten(2, (tiles, TILE**2)) @ k.transpose(-2, -1) + (bias + outside.to(bias.dtype))
    pooled = q @ pooled_k.transpose(-2, -1) + pooled_bias.index_select(1, queries)
    weights = torch.cat([local.flatten(2, 3), pooled], dim=-1).softmax(-1).to(v.dtype)
    local, pooled = weights.split([halo, pooled.shape[-1]], dim=-1)

    extra = F.pad(gather(extra, queries), (0, 1)).unflatten(2, (tiles, TILE**2)).flatten(3)
    extra = extra.index_select(3, spread).unflatten(3, (TILE**2, halo))
    near = (local.unflatten(2, (tiles, TILE**2)) + extra) @ v
    out = near.flatten(2, 3) + pooled @ pooled_v
    return out.index_select(2, home).transpose(1, 2).unflatten(1, (height, width))


def _surround(x: torch.Tensor, size: int) -> torch.Tensor:
    """(B, H, W, heads, d) with zeros around it, so that the windows of all tiles lie inside."""
    bottom, right = (ceil_div(n, TILE) * TILE - n + size // 2 for n in x.shape[1:3])
    return F.pad(x, (0, 0, 0, 0, size // 2, right, size // 2, bottom))


@per_size
def pairs(size: int, *, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The pairs of a query of a tile and a key of its halo, query by query.

    Returns:
        Which position of the query's window the key is, or size**2 for none; and the index of that position among
        those of all queries, each with one more for none.
    """
    ahead = torch.arange(TILE + size - 1, device=device) - torch.arange(TILE, device=device)[:, None]
    inside = (ahead >= 0) & (ahead < size)
    inside = inside[:, None, :, None] & inside[None, :, None, :]
    taps = (ahead * size)[:, None, :, None] + ahead[None, :, None, :]
    taps = torch.where(inside, taps, size**2).flatten(2).flatten(0, 1)
    spread = torch.arange(TILE**2, device=device)[:, None] * (size**2 + 1) + taps
    return taps.flatten(), spread.flatten()


@per_size
def plan(height: int, width: int, size: int, *, device: torch.device) -> tuple[int | torch.Tensor, ...]:
    """The tiles of a map.

    Returns:
        The number of tiles; the position of each query, tile by tile, in the H * W of an image, and of each key in
        the surrounded map; `UNSEEN` for keys outside the map and 0 for others, (tiles, 1, keys); and the query of each
        position.
    """
    (down, right), reach = (ceil_div(n, TILE) for n in (height, width)), torch.arange(TILE + size - 1, device=device)
    first = [torch.arange(n, device=device)[:, None] * TILE for n in (down, right)]
    tile = torch.arange(TILE, device=device)
    rows, columns = ((f + tile).clamp(max=n - 1) for f, n in zip(first, (height, width), strict=True))
    queries = (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten()
    rows, columns = (f + reach for f in first)
    keys = (rows[:, None, :, None] * (right * TILE + size - 1) + columns[None, :, None, :]).flatten()
    rows, columns = (
        (p >= size // 2) & (p < n + size // 2) for p, n in zip((rows, columns), (height, width), strict=True)
    )
    inside = rows[:, None, :, None] & columns[None, :, None, :]
    outside = torch.where(inside, 0.0, UNSEEN).reshape(down * right, 1, (TILE + size - 1) ** 2)
    row, column = (torch.arange(n, device=device) for n in (height, width))
    row = (row // TILE * right * TILE + row % TILE) * TILE
    column = column // TILE * TILE**2 + column % TILE
    return down * right, queries, keys, outside, (row[:, None] + column).flatten()
