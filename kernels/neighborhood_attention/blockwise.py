"""Neighborhood attention by tiles of queries, for exported programs: a few gathers, and dense products of matrices.

The queries of a tile are multiplied with all keys that any of them sees. A bias of -inf removes those that a query
itself does not see.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.kernels.per_size import per_size
from zoo.kernels.sizes import ceil_div

TILE = 7
"""The longest side of a tile. The sides of 7 x 7 windows cost little, and divide the maps of images of 224 pixels."""


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    size: tuple[int, int],
    dilation: tuple[int, int],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """See `api.neighborhood_attention`."""
    height, width = q.shape[1:3]
    queries, keys, home, rows, columns = plan(height, width, *size, *dilation, device=q.device)
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q * scale, k, v))  # (B, heads, HW, head_dim)
    q, k, v = _pick(q, queries), _pick(k, keys), _pick(v, keys)  # (B, heads, tiles, positions, head_dim)
    if bias is None:
        bias = q.new_zeros(1, *(2 * n - 1 for n in size))
    logits = q @ k.transpose(-2, -1) + _pairs(bias, rows, columns)
    out = logits.softmax(-1).to(v.dtype) @ v
    out = out.flatten(2, 3).index_select(2, home)
    return out.transpose(1, 2).unflatten(1, (height, width))


def _pick(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(B, heads, HW, head_dim) to (B, heads, *positions.shape, head_dim)."""
    return x.index_select(2, positions.flatten()).unflatten(2, positions.shape)


def _pairs(bias: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The table of biases expanded to all pairs of a query and a key, (heads, tiles, queries, keys)."""
    table = F.pad(bias, (0, 1, 0, 1), value=float("-inf"))
    table = table.index_select(2, columns.flatten()).unflatten(2, (-1, columns.shape[1]))
    table = table.transpose(1, 2).flatten(1, 2)  # (heads, columns of queries * 2h, columns of keys)
    return table.index_select(1, rows.flatten()).unflatten(1, rows.shape).flatten(3)


@per_size
def plan(
    height: int, width: int, h: int, w: int, down: int, right: int, *, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """The tiles of a map for windows of h x w and dilations (down, right).

    Returns:
        The positions of the queries and of the keys of each tile, (tiles, positions), of an image's H * W; where the
        tiles contain each position, (H * W,); and for `_pairs`: for each query and row of keys the row of the table
        that has been expanded to columns, (tiles, queries, rows of keys), and for each column of queries and of keys
        the column of the table.
    """
    vertical, horizontal = axis(height, h, down, device), axis(width, w, right, device)
    queries, keys = (
        (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2).flatten(0, 1)
        for rows, columns in zip(vertical[:2], horizontal[:2], strict=True)
    )
    (tiles_down, tile_height), (tiles_right, tile_width) = vertical[0].shape, horizontal[0].shape
    row = (vertical[2] * tiles_right * tile_height + vertical[3]) * tile_width
    column = horizontal[2] * tile_height * tile_width + horizontal[3]
    home = (row[:, None] + column).flatten()
    first = torch.arange(tiles_right * tile_width, device=device).unflatten(0, (tiles_right, tile_width)) * (2 * h)
    rows = vertical[4][:, None, :, None, :] + first[None, :, None, :, None]
    return queries, keys, home, rows.flatten(2, 3).flatten(0, 1), horizontal[4].flatten(0, 1)


def axis(length: int, size: int, dilation: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The tiles of one axis: equal runs of the ranks in each group of positions that are equal modulo `dilation`.

    Positions and ranks beyond the end stand for nothing: as queries they are computed in vain, as keys never seen.

    Returns:
        The positions of the queries, (tiles, tile), and of the keys that they see, (tiles, halo); the tile and the
        place in it of each position, (length,); and the index in the table of position biases, key rank - query rank +
        size - 1, or 2 * size - 1 for a key that the query does not see, (tiles, tile, halo).
    """
    ranks = ceil_div(length, dilation)
    tiles = ceil_div(ranks, TILE)
    tile = ceil_div(ranks, tiles)
    halo = min(tile + size - 1, ranks)
    group = torch.arange(dilation, device=device)[:, None]
    members = (length - 1 - group) // dilation + 1
    first = torch.arange(tiles, device=device) * tile
    query = first[:, None] + torch.arange(tile, device=device)
    start = torch.minimum((first - size // 2).clamp(min=0), (members - halo).clamp(min=0))  # (group, tiles)
    key = start[..., None] + torch.arange(halo, device=device)
    window = torch.minimum((query - size // 2).clamp(min=0), members[..., None] - size)
    ahead = key[:, :, None] - window[..., None]
    index = torch.where((ahead >= 0) & (ahead < size), key[:, :, None] - query[..., None] + size - 1, 2 * size - 1)

    queries, keys = ((rank * dilation + group[..., None]).clamp(max=length - 1) for rank in (query, key))
    position = torch.arange(length, device=device)
    rank = position // dilation
    own = rank // tile
    home = position % dilation * tiles + own
    return queries.flatten(0, 1), keys.flatten(0, 1), home, rank - own * tile, index.flatten(0, 1)
