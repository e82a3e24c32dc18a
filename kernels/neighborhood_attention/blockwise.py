"""Neighborhood attention by tiles of queries, for exported programs: a few gathers, and dense products of matrices.

The queries of a tile are multiplied with all keys that any of them sees, the halo of the tile. A bias removes
those that the query itself does not see.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.kernels.exporting import UNSEEN
from zoo.kernels.per_size import per_size
from zoo.kernels.sizes import ceil_div

TILE = 4
"""The side of a tile. Larger tiles copy fewer keys, smaller ones compute fewer pairs in vain."""


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
    halo = (TILE + size[0] - 1) * (TILE + size[1] - 1)
    tiles, queries, keys, home, columns, rows = plan(height, width, *size, *dilation, device=q.device)

    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q * scale, k, v))  # (B, heads, HW, head_dim)
    q = q.index_select(2, queries).unflatten(2, (tiles, TILE**2))
    k, v = (t.index_select(2, keys).unflatten(2, (tiles, halo)) for t in (k, v))

    table = q.new_zeros(1, *(2 * n - 1 for n in size)) if bias is None else bias
    table = F.pad(table, (0, 1, 0, 1), value=UNSEEN)  # the last row and column are those of unseen keys
    table = table.index_select(2, columns).reshape(table.shape[0], -1, TILE + size[1] - 1)
    pairs = table.index_select(1, rows).reshape(table.shape[0], tiles, TILE**2, halo)

    out = (q @ k.transpose(-2, -1) + pairs).softmax(-1).to(v.dtype) @ v
    return out.flatten(2, 3).index_select(2, home).transpose(1, 2).unflatten(1, (height, width))


@per_size
def plan(
    height: int, width: int, h: int, w: int, down: int, right: int, *, device: torch.device
) -> tuple[int | torch.Tensor, ...]:
    """The tiles of a map for windows of h x w and dilations (down, right).

    Returns:
        The number of tiles; the position of each query and of each key, tile by tile, in the H * W of an image; the
        query of each position; the columns of the padded table of biases for each column of queries and of keys; and
        the rows of that expanded table, (2h * columns of queries, columns of keys), for each query and row of keys.
    """
    vertical, horizontal = axis(height, h, down, device), axis(width, w, right, device)
    queries, keys = (
        (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten()
        for rows, columns in zip(vertical[:2], horizontal[:2], strict=True)
    )
    tiles_right = horizontal[0].shape[0]
    row = (vertical[2] * tiles_right * TILE + vertical[3]) * TILE
    home = row[:, None] + horizontal[2] * TILE**2 + horizontal[3]
    column = torch.arange(tiles_right * TILE, device=device).unflatten(0, (tiles_right, 1, TILE, 1))
    pairs = vertical[4][:, None, :, None, :] * (tiles_right * TILE) + column
    return vertical[0].shape[0] * tiles_right, queries, keys, home.flatten(), horizontal[4].flatten(), pairs.flatten()


def axis(length: int, size: int, dilation: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The tiles of one axis: runs of `TILE` ranks in each group of positions that are equal modulo `dilation`.

    What lies beyond the end of a group stands for a position of the map nevertheless: as a query it is computed in
    vain, and as a key it is not seen.

    Returns:
        The positions of the queries, (tiles, TILE), and of the keys, (tiles, halo); the tile of each position and its
        place there, (length,); and the index in the table of biases, (tiles, TILE, halo): key rank - query rank + size
        - 1, or 2 * size - 1 for a key that the query does not see.
    """
    runs = ceil_div(ceil_div(length, dilation), TILE)
    group = torch.arange(dilation, device=device)[:, None]
    members = (length - 1 - group) // dilation + 1
    first = torch.arange(runs, device=device) * TILE
    query = first[:, None] + torch.arange(TILE, device=device)
    halo = torch.arange(TILE + size - 1, device=device)
    key = torch.minimum(first - size // 2, members - len(halo)).clamp(min=0)[..., None] + halo  # (groups, runs, halo)
    window = torch.minimum((query - size // 2).clamp(min=0), members[..., None] - size)
    ahead = key[:, :, None] - window[..., None]
    index = (key[:, :, None] - query[..., None] + size - 1).clamp(min=0)
    index = torch.where((ahead >= 0) & (ahead < size), index, 2 * size - 1)

    queries, keys = ((rank * dilation + group[..., None]).clamp(max=length - 1) for rank in (query, key))
    position = torch.arange(length, device=device)
    rank, run = position // dilation, position // dilation // TILE
    tile = position % dilation * runs + run
    return queries.flatten(0, 1), keys.flatten(0, 1), tile, rank - run * TILE, index.flatten(0, 1)
