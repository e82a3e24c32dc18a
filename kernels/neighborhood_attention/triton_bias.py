"""Gradient of the position biases of neighborhood attention on a GPU, without atomic additions; see README.md."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch, multiprocessors
from zoo.kernels.neighborhood_attention.triton_lattice import box_of, stretch_of, tile_ranks, window_start
from zoo.kernels.neighborhood_attention.triton_plan import Plan

PER_SM = 16
"""Programs of `_by_difference` that run on a multiprocessor at once."""


def bias_gradient(plan: Plan, partial: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The gradient of `bias` from the sums written by the programs of `_queries` according to that kernel's plan."""
    heads, down, across = bias.shape
    programs = plan.grid[0] // heads
    parts = max(1, min(programs, PER_SM * multiprocessors(bias.device) // (heads * down)))
    sums = partial.new_empty(parts, heads, down, across)
    names = ("SIZE_Y", "SIZE_X", "TILE_Y", "TILE_X", "KEYS")
    options = {name: plan.options[name] for name in names} | {"BOX": partial.shape[2], "num_warps": 2}
    options["WIDTH"] = triton.next_power_of_2(across)
    launch(_by_difference, (parts * down * heads,), partial, sums, programs, parts, *plan.numbers[10:], **options)
    return sums.sum(0).to(bias.dtype)


@triton.jit(do_not_specialize=["programs", "parts"])
def _by_difference(
    partial, sums, programs, parts,
    height, width, heads, dilation_y, dilation_x, down, kinds_y, kinds_x, row_of_kinds, run, stretch,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, KEYS: tl.constexpr,
    BOX: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sums over queries and some of the programs of one head, for one row of the table: keys some rows further down."""
    ROWS: tl.constexpr = TILE_Y * TILE_X
    head = tl.program_id(0) % heads
    ahead_y = tl.program_id(0) // heads % (2 * SIZE_Y - 1) - (SIZE_Y - 1)
    part = tl.program_id(0) // heads // (2 * SIZE_Y - 1)
    column = tl.arange(0, WIDTH)
    ahead_x = column - (SIZE_X - 1)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for program in range(part, programs, parts):
        item = program * heads + head
        _, _, _, members_y, members_x, first_y, first_x, tiles, _ = stretch_of(
            item, height, width, heads, dilation_y, dilation_x, down, kinds_y, kinds_x, row_of_kinds,
            run, stretch, SIZE_Y, SIZE_X, TILE_Y, TILE_X, KEYS,
        )  # fmt: skip
        y, x, inside = tile_ranks(first_y, first_x, members_y, members_x, TILE_Y, TILE_X)
        start_y, _ = box_of(first_y, members_y, SIZE_Y, TILE_Y, KEYS)
        start_x, columns = box_of(first_x, members_x, SIZE_X, TILE_X, KEYS)
        key_y, key_x = y + ahead_y, x[:, None] + ahead_x[None, :]
        in_y = key_y - window_start(y, members_y, SIZE_Y)
        in_x = key_x - window_start(x, members_x, SIZE_X)[:, None]
        seen = (inside & (in_y >= 0) & (in_y < SIZE_Y))[:, None] & (in_x >= 0) & (in_x < SIZE_X) & (tiles > 0)
        at = (tl.arange(0, ROWS) * BOX + (key_y - start_y) * columns)[:, None] + key_x - start_x
        total += tl.load(partial + item.to(tl.int64) * (ROWS * BOX) + at, mask=seen, other=0.0)
    sums += (part * heads + head) * ((2 * SIZE_Y - 1) * (2 * SIZE_X - 1))
    at = sums + (ahead_y + SIZE_Y - 1) * (2 * SIZE_X - 1) + column
    tl.store(at, tl.sum(total, 0), mask=column < 2 * SIZE_X - 1)
