"""Initial values for the products of queries and keys: biases in units of the scale, -inf outside windows.

They are the same for all tiles of one kind and all images, so they are written to a table once per call.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.neighborhood_attention.triton_lattice import (
    box_of,
    box_steps,
    members_of,
    tile_of_kind,
    tile_ranks,
    window_start,
)
from zoo.kernels.neighborhood_attention.triton_plan import Plan


def pair_table(plan: Plan, q: torch.Tensor, bias: torch.Tensor | None, scale: float) -> torch.Tensor | None:
    """The table for the kernels of a plan, if it has one, by kind of tile, head and block of the box."""
    if plan.table is None:
        return None
    table = q.new_empty(plan.table, dtype=torch.float32)
    launch(_write_table, plan.table[:1], bias, table, scale, *plan.table_numbers, **plan.table_options)
    return table


@triton.jit
def pairs_of(
    bias, head, scale, begin, box, first_y, first_x, members_y, members_x,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The pairs of all positions of a tile and those of a block of the box: of keys, or else of queries."""
    start_y, start_x, rows, columns = box
    y, x, _ = tile_ranks(first_y, first_x, members_y, members_x, TILE_Y, TILE_X)
    other_y, other_x, there = box_steps(begin, rows, columns, BLOCK)
    y, x, other_y, other_x = y[:, None], x[:, None], (start_y + other_y)[None, :], (start_x + other_x)[None, :]
    query_y, query_x, key_y, key_x = (y, x, other_y, other_x) if KEYS else (other_y, other_x, y, x)
    ahead_y = key_y - window_start(query_y, members_y, SIZE_Y)
    ahead_x = key_x - window_start(query_x, members_x, SIZE_X)
    seen = (ahead_y >= 0) & (ahead_y < SIZE_Y) & (ahead_x >= 0) & (ahead_x < SIZE_X) & there[None, :]
    if bias is None:
        return tl.where(seen, 0.0, float("-inf"))
    else:
        WIDTH: tl.constexpr = 2 * SIZE_X - 1
        bias += head * (2 * SIZE_Y - 1) * WIDTH + (SIZE_Y - 1) * WIDTH + SIZE_X - 1
        pairs = (key_y - query_y) * WIDTH + key_x - query_x
        return tl.load(bias + pairs, mask=seen, other=float("-inf")).to(tl.float32) * (1.0 / scale)


@triton.jit
def block_of_pairs(
    table, index, bias, head, scale, box, first_y, first_x, members_y, members_x,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The pairs of a tile and block number `index` of its box, (32, 16): from the table, if there is one."""
    if table is None:
        return pairs_of(
            bias, head, scale, index * 16, box, first_y, first_x, members_y, members_x,
            SIZE_Y, SIZE_X, TILE_Y, TILE_X, KEYS, 16,
        )  # fmt: skip
    else:
        return read_pairs(table + index * 512)


@triton.jit
def read_pairs(table):
    """A block of the table, (32, 16).

    Its numbers are in the order in which two warps hold them for the tensor cores: four of a thread, then those of its
    neighbour. Counted from the right, the axes in memory are bits of column, row, column, row, row and column.
    """
    numbers = tl.load(table + tl.arange(0, 512))
    return numbers.reshape(2, 2, 8, 4, 2, 2).permute(1, 4, 2, 0, 3, 5).reshape(32, 16)


@triton.jit
def _write_table(
    bias, table, scale, height, width, heads, dilation_y, dilation_x, kinds_y, kinds_x, row_of_kinds, blocks,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One block of the pairs of one kind of tiles and one head, in the order of `read_pairs`."""
    item = tl.program_id(0)
    block = item % blocks
    head = item // blocks % heads
    kind = item // blocks // heads
    most_y, most_x = members_of(0, height, dilation_y), members_of(0, width, dilation_x)
    first_y, members_y = tile_of_kind(kind // row_of_kinds, kinds_y, most_y, SIZE_Y, TILE_Y, KEYS)
    first_x, members_x = tile_of_kind(kind % row_of_kinds, kinds_x, most_x, SIZE_X, TILE_X, KEYS)
    start_y, rows = box_of(first_y, members_y, SIZE_Y, TILE_Y, KEYS)
    start_x, columns = box_of(first_x, members_x, SIZE_X, TILE_X, KEYS)
    pairs = pairs_of(
        bias, head, scale, block * 16, (start_y, start_x, rows, columns), first_y, first_x, members_y, members_x,
        SIZE_Y, SIZE_X, TILE_Y, TILE_X, KEYS, 16,
    )  # fmt: skip
    numbers = pairs.reshape(2, 2, 8, 2, 4, 2).permute(3, 0, 2, 4, 1, 5).reshape(512)
    tl.store(table + item.to(tl.int64) * 512 + tl.arange(0, 512), numbers)
