"""Shared by the Triton kernels of neighborhood attention: tiles of the dilated lattice and what they see.

Positions that are equal modulo the dilation on both axes form a group, in which a position has a rank (row, column). A
group is divided into tiles of 32 positions. The ranks that a tile sees, or that see it, fill a box, which is processed
in blocks of COLUMNS positions, counted row by row.

Tiles far enough from the borders of their group are alike: relative to their first position, boxes, windows and biases
are the same. On each axis, the first of them represents all: tiles are of one kind if they have the same
representative.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROWS = 32
"""Positions of a tile."""
COLUMNS = 16
"""Positions of a block of its box."""
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def alike(members, SIZE: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr):
    """On one axis: the number of tiles before those that are alike, and the number of tiles like the first of these.

    With KEYS, tiles of queries whose windows are not shifted by a border; else tiles of keys seen by no shifted window.
    """
    MARGIN: tl.constexpr = SIZE // 2 if KEYS else SIZE
    BEFORE: tl.constexpr = (MARGIN + TILE - 1) // TILE
    return BEFORE, tl.maximum((members - MARGIN) // TILE - BEFORE - 1, 0)


@triton.jit
def members_of(group, length, dilation):
    """How many positions of one axis a group has."""
    return (length - group + dilation - 1) // dilation


@triton.jit
def stretch_of(
    item, height, width, heads, dilation_y, dilation_x, down, kinds_y, kinds_x, row_of_kinds, run, stretch,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The work of a program: up to `stretch` neighbouring tiles of one kind in one row, in a chunk of images.

    Returns the head, the chunk, the group and its members, the rank of the first tile's first position, the number of
    tiles and their kind. Groups with fewer members than others have kinds of their own, offset by `kinds_y` or
    `kinds_x`.
    """
    head = item % heads
    item //= heads
    parts = (run + stretch - 1) // stretch  # of tiles that are alike; every other tile of a row is a kind of its own
    part = item % (kinds_x - 1 + parts)
    item //= kinds_x - 1 + parts
    tile_y = item % down
    item //= down
    group_x = item % dilation_x
    item //= dilation_x
    group_y = item % dilation_y
    members_y, members_x = members_of(group_y, height, dilation_y), members_of(group_x, width, dilation_x)
    before_y, like_y = alike(members_y, SIZE_Y, TILE_Y, KEYS)
    before_x, like_x = alike(members_x, SIZE_X, TILE_X, KEYS)
    kind_y = tile_y - tl.minimum(tl.maximum(tile_y - before_y, 0), like_y)
    within = tl.minimum(tl.maximum(part - before_x, 0), parts - 1)
    kind_x = part - within
    tile_x = kind_x + tl.where(kind_x > before_x, like_x, within * stretch)
    tiles = tl.where(kind_x == before_x, tl.minimum(like_x + 1 - within * stretch, stretch), 1)
    first_y, first_x = tile_y * TILE_Y, tile_x * TILE_X
    tiles = tl.where((first_y < members_y) & (first_x < members_x), tiles, 0)
    kind_y += tl.where(members_y < members_of(0, height, dilation_y), kinds_y, 0)
    kind_x += tl.where(members_x < members_of(0, width, dilation_x), kinds_x, 0)
    group = (group_y, group_x, dilation_y, dilation_x)
    kind = kind_y * row_of_kinds + kind_x
    return head, item // dilation_y, group, members_y, members_x, first_y, first_x, tiles, kind


@triton.jit
def tile_of_kind(kind, kinds, most, SIZE: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr):
    """On one axis: the first rank of the first tile of a kind, and the members of its group."""
    members = most - kind // kinds
    before, like = alike(members, SIZE, TILE, KEYS)
    tile = kind % kinds
    return tl.where(tile > before, tile + like, tile) * TILE, members


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
def box_of(first, members, SIZE: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr):
    """On one axis: the first rank and the number of ranks that a tile of queries sees; or see a tile of keys."""
    last = tl.minimum(first + TILE, members) - 1
    first = tl.minimum(first, last)
    if KEYS:
        start = window_start(first, members, SIZE)
        return start, window_start(last, members, SIZE) + SIZE - start
    else:
        start = tl.where(first < SIZE, 0, first - SIZE // 2)
        return start, tl.where(last >= members - SIZE, members, last + SIZE // 2 + 1) - start


@triton.jit
def box_steps(begin, rows, columns, BLOCK: tl.constexpr):
    """The positions of a box from the `begin`-th on, relative to its first, and which of them exist.

    Positions after the end repeat the last one, so that they can be read like all others.
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
def write_sums(at, total, delta, inside):
    """Store two float32 numbers of a query as one, because keys always read both."""
    low = total.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    tl.store(at, low | (delta.to(tl.int32, bitcast=True).to(tl.int64) << 32), mask=inside)


@triton.jit
def read_sums(at):
    """The reverse of `write_sums`."""
    both = tl.load(at)
    return both.to(tl.int32).to(tl.float32, bitcast=True), (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
