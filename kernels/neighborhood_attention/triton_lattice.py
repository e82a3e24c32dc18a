"""What the Triton kernels of neighborhood attention share: tiles of the dilated lattice, its windows, its logits.

Positions that are equal modulo the dilation on both axes form a group, in which a position has a rank (row, column).
A program owns a tile of ROWS positions of one group and one head in a few images. The ranks that see it, or that it
sees, fill a box, which is visited in blocks of COLUMNS positions, counted row by row.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import capability

ROWS = 32
COLUMNS = 16
PROGRAMS = 2048
"""As many share the work, if there is as much: fewer leave a large GPU idle, more read the biases more often."""
KEPT = {16: 144, 32: 144}
"""So many keys, or queries, a program may visit and still keep their biases from image to image; by padded head dim."""
LOG2E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(1 << 20)
"""A rank so far out that no window holds it."""


class Layout(NamedTuple):
    """How the positions of all images fall into tiles."""

    tiles: int
    """Of one image, for one head."""
    grid: tuple[int]
    """Programs: one for every tile, chunk of images and head."""
    integers: tuple[int, ...]
    """What every kernel takes: batch, images of a program, height, width, heads, dilations, tiles down and across."""
    options: dict[str, int]
    """Constants and launch parameters of every kernel."""
    keys: dict[str, int]
    """Blocks of keys that a tile of queries visits."""
    queries: list[dict[str, int]]
    """Blocks of queries that a tile of keys visits: for most tiles, and for those near borders that see more."""


def layout(q: torch.Tensor, k: torch.Tensor, size: list[int], dilation: list[int]) -> Layout:
    """The layout for queries and keys like `q` and `k`."""
    longest = max(q.stride(0), k.stride(0), q[:1].numel(), 1)
    most = max(1, (2**31 - 1) // longest - 1)  # a program counts in 32 bits
    return _layout(q.shape, q.dtype, tuple(size), tuple(dilation), most, capability(q.device))


@cache
def _layout(
    shape: torch.Size,
    dtype: torch.dtype,
    size: tuple[int, int],
    dilation: tuple[int, int],
    most: int,
    generation: int,
) -> Layout:
    batch, height, width, heads, head_dim = shape
    rows, columns = triton.cdiv(height, dilation[0]), triton.cdiv(width, dilation[1])
    tile = _tile(rows, columns, size)
    down, across = triton.cdiv(rows, tile[0]), triton.cdiv(columns, tile[1])
    tiles = dilation[0] * dilation[1] * down * across
    share = max(1, min(most, batch * tiles * heads // PROGRAMS))
    exact = dtype == torch.float32  # without tensor cores
    warps = (2 if head_dim <= 32 else 8) if exact else (2 if head_dim <= 64 else 4)
    block_d = max(16, triton.next_power_of_2(head_dim))
    kept = 0 if exact or generation < 80 else KEPT.get(block_d, 0)
    options = {
        "SIZE_Y": size[0],
        "SIZE_X": size[1],
        "TILE_Y": tile[0],
        "TILE_X": tile[1],
        "D": head_dim,
        "BLOCK_D": block_d,
        "num_warps": warps,
        "num_stages": 2,
    }
    seeing = prod(
        max(_most_seeing(members, n, t) for members in (length // d, triton.cdiv(length, d)))
        for length, d, n, t in zip((height, width), dilation, size, tile, strict=True)
    )
    integers = (batch, share, height, width, heads, *dilation, down, across)
    visited = _most_seen(rows, columns, size, tile)
    fixed = {"BLOCK": COLUMNS, "BLOCKS": triton.cdiv(visited, COLUMNS)}
    free = {"BLOCK": COLUMNS if exact and head_dim > 64 else 2 * COLUMNS, "BLOCKS": 0}
    if visited > kept:
        keys, queries = free, [free | {"LEAST": 0}]
    elif seeing <= kept:
        keys, queries = fixed, [fixed | {"BLOCKS": triton.cdiv(seeing, COLUMNS), "LEAST": 0}]
    else:
        blocks = kept // COLUMNS
        keys, queries = fixed, [fixed | {"BLOCKS": blocks, "LEAST": 0}, free | {"LEAST": blocks * COLUMNS + 1}]
    return Layout(tiles, (tiles * triton.cdiv(batch, share) * heads,), integers, options, keys, queries)


def _tile(rows: int, columns: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a tile of ROWS positions with which groups of (rows, columns) take the fewest blocks."""

    def blocks(height: int) -> int:
        tile = height, ROWS // height
        each = triton.cdiv(_most_seen(rows, columns, size, tile), COLUMNS)
        return triton.cdiv(rows, tile[0]) * triton.cdiv(columns, tile[1]) * each

    height = min((4, 8, 2, 16, 1, 32), key=blocks)
    return height, ROWS // height


def _most_seen(rows: int, columns: int, size: tuple[int, int], tile: tuple[int, int]) -> int:
    """The most keys that the queries of a tile see."""
    return min(rows, tile[0] + size[0] - 1) * min(columns, tile[1] + size[1] - 1)


def _most_seeing(members: int, size: int, tile: int) -> int:
    """The most ranks of one axis that see the keys of a tile; `queries_of` for all tiles."""

    def number(first: int, last: int) -> int:
        begin = 0 if first < size else first - size // 2
        return (members if last >= members - size else last + size // 2 + 1) - begin

    return max(number(first, min(first + tile, members) - 1) for first in range(0, members, tile))


def positive(q: torch.Tensor, scale: float) -> tuple[torch.Tensor, float]:
    """Queries and a scale above zero with the same logits: the kernels count biases in units of the scale."""
    return (-q, -scale) if scale < 0 else (q, max(scale, 1e-20))


def readable(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors of one stride, in which the channels of a head lie side by side: themselves, or else copies."""
    if tensors[0].stride(-1) == 1 and len({t.stride() for t in tensors}) == 1:
        return tensors
    return tuple(t.clone(memory_format=torch.contiguous_format) for t in tensors)


def strides_of(*tensors: torch.Tensor) -> tuple[int, ...]:
    """A unit that divides all strides but the last of each tensor; these strides, counted in the unit.

    Heads of 8, 24 or 72 channels are as good as aligned to 8 numbers, but a compiler looks for multiples of 16 only.
    """
    numbers = [n for t in tensors for n in t.stride()[:4]]
    unit = 1 if any(n % 8 for n in numbers) else 8
    return unit, *(n // unit for n in numbers)


@triton.jit
def tile(item, height, width, dilation_y, dilation_x, down, across, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Where a tile is: its chunk of images, its group and the members of that, the rank of its first position."""
    first_x = item % across * TILE_X
    item //= across
    first_y = item % down * TILE_Y
    item //= down
    group_x = item % dilation_x
    item //= dilation_x
    group_y = item % dilation_y
    members_y = (height - group_y + dilation_y - 1) // dilation_y
    members_x = (width - group_x + dilation_x - 1) // dilation_x
    return item // dilation_y, (group_y, group_x, dilation_y, dilation_x), members_y, members_x, first_y, first_x


@triton.jit
def tile_ranks(first_y, first_x, members_y, members_x, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """The ranks of a tile's positions and which are in the group; those outside repeat its last row or column."""
    index = tl.arange(0, TILE_Y * TILE_X)
    y, x = first_y + index // TILE_X, first_x + index % TILE_X
    inside = (y < members_y) & (x < members_x)
    return tl.minimum(y, members_y - 1), tl.minimum(x, members_x - 1), inside


@triton.jit
def window_start(rank, members, SIZE: tl.constexpr):
    """The first rank that a query sees on one axis."""
    return tl.minimum(tl.maximum(rank - SIZE // 2, 0), members - SIZE)


@triton.jit
def keys_of(first, members, SIZE: tl.constexpr, TILE: tl.constexpr):
    """The first rank and the number of ranks that the queries of a tile see on one axis."""
    last = tl.minimum(first + TILE, members) - 1
    start = window_start(tl.minimum(first, last), members, SIZE)
    return start, window_start(last, members, SIZE) + SIZE - start


@triton.jit
def queries_of(first, members, SIZE: tl.constexpr, TILE: tl.constexpr):
    """The first rank and the number of ranks that see the keys of a tile on one axis: at borders, more."""
    last = tl.minimum(first + TILE, members) - 1
    first = tl.minimum(first, last)
    start = tl.where(first < SIZE, 0, first - SIZE // 2)
    return start, tl.where(last >= members - SIZE, members, last + SIZE // 2 + 1) - start


@triton.jit
def box_steps(begin, rows, columns, BLOCK: tl.constexpr):
    """The positions of a box from the `begin`-th on, counted from its first, and which there are.

    Those beyond the end repeat the last one: they can be read like all others.
    """
    index = begin + tl.arange(0, BLOCK)
    last = rows * columns - 1
    there, index = index <= last, tl.minimum(index, last)
    y = ((index + 0.5) * (1.0 / columns)).to(tl.int32)  # exact: boxes are small, and half a step keeps off integers
    return y, index - y * columns, there


@triton.jit
def locate(image, group, rank_y, rank_x, head, stride_b, stride_y, stride_x, stride_h):
    """One position of a group of an image in a (B, H, W, heads, ...) tensor, in the unit of the strides."""
    group_y, group_x, dilation_y, dilation_x = group
    y, x = group_y + rank_y * dilation_y, group_x + rank_x * dilation_x
    return image.to(tl.int64) * stride_b + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x + head * stride_h


@triton.jit
def read(t, rows, UNIT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The channels at rows of UNIT numbers each, zero beyond the last channel."""
    channel = tl.arange(0, BLOCK_D)
    at = t + (rows * UNIT)[:, None] + channel[None, :]
    if D == BLOCK_D:
        return tl.load(at)
    else:
        return tl.load(at, mask=(channel < D)[None, :], other=0.0)


@triton.jit
def write(t, rows, value, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store the channels of rows that are inside."""
    channel = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (channel < D)[None, :]
    tl.store(t + (rows * D)[:, None] + channel[None, :], value.to(t.dtype.element_ty), mask=mask)


@triton.jit
def sees(key_y, key_x, start_y, start_x, SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr):
    """Whether keys are in the windows that begin at `start`.

    As unsigned numbers those before it are far behind; in units of the other axis both have the same bound.
    """
    y = (key_y * SIZE_X - start_y * SIZE_X).to(tl.uint32, bitcast=True)
    x = (key_x * SIZE_Y - start_x * SIZE_Y).to(tl.uint32, bitcast=True)
    return tl.maximum(y, x) < SIZE_Y * SIZE_X


@triton.jit
def pair_table(bias, head, scale, key_y, key_x, query_y, query_x, seen, SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr):
    """What to add to q . k: biases in units of `scale`, -inf for pairs that do not see each other."""
    if bias is None:
        return tl.where(seen, 0.0, float("-inf"))
    else:
        WIDTH: tl.constexpr = 2 * SIZE_X - 1
        bias += head * (2 * SIZE_Y - 1) * WIDTH + (SIZE_Y - 1) * WIDTH + SIZE_X - 1
        pairs = (key_y * WIDTH + key_x) - (query_y * WIDTH + query_x)
        return tl.load(bias + pairs, mask=seen, other=float("-inf")).to(tl.float32) * (1.0 / scale)


@triton.jit
def key_block(
    begin, y, x, from_y, from_x, box, strides, bias, head, scale,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of keys: where they lie in the box, and what logits start from."""
    start_y, start_x, rows, columns = box
    stride_y, stride_x = strides
    key_y, key_x, there = box_steps(begin, rows, columns, BLOCK)
    at = key_y * stride_y + key_x * stride_x
    key_y, key_x = tl.where(there, start_y + key_y, FAR)[None, :], (start_x + key_x)[None, :]
    seen = sees(key_y, key_x, from_y[:, None], from_x[:, None], SIZE_Y, SIZE_X)
    return at, pair_table(bias, head, scale, key_y, key_x, y[:, None], x[:, None], seen, SIZE_Y, SIZE_X)
