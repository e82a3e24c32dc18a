"""The bias in the order in which tiles of long groups read it, and the sum of the parts of its gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.sizes import ceil_div

ROWS, COLUMNS = tl.constexpr(16), tl.constexpr(32)
"""A block of the table. A thread of a product holds pairs of columns 8 apart, and a row 8 below: its numbers follow
each other here, so that the block is read as 16 bytes a thread, in which the product has it."""
CELLS = tl.constexpr(512)
HEIGHT, WIDTH = tl.constexpr(16), tl.constexpr(64)
"""Parts and cells that are summed in parallel."""


def blocks_of(tokens: int) -> tuple[int, int]:
    """Blocks of a table, down and across: enough for tiles of 64 rows and columns, and of 128 rows if they fit."""
    longest = ceil_div(tokens, 64) * 64
    return longest // ROWS.value, longest // COLUMNS.value


def table_of(bias: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(heads, tokens, tokens) as (heads, rows of blocks, blocks, CELLS): minus infinity in columns beyond.

    Numbers of two bytes are seen as pairs, int32.
    """
    heads, tokens, _ = bias.shape
    down, across = blocks_of(tokens)
    table = torch.empty((heads, down, across, CELLS.value), dtype=dtype, device=bias.device)
    launch(_table, (heads * down * across,), bias.contiguous(), table, down, across, TOKENS=tokens, num_warps=4)
    return table if dtype == torch.float32 else table.view(torch.int32)


def add_up(partial: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The gradient of bias from sums over tiles, (programs, rows, columns), with the heads of a tile adjacent."""
    gradient = torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    heads, tokens, _ = bias.shape
    own, other = partial.shape[1:]
    slots = max(1, own // tokens)
    tiles, tiles_x = ceil_div(slots * tokens, own), ceil_div(slots * tokens, other)
    grid = (heads * ceil_div(tokens * tokens, WIDTH.value),)
    parts = partial.shape[0] // (heads * tiles * tiles_x)
    numbers = (heads, parts, slots, tiles, tiles_x)
    launch(_add_up, grid, partial, gradient, *numbers, TOKENS=tokens, OWN=own, OTHER=other, num_warps=4)
    return gradient


@triton.jit(do_not_specialize=["down", "across"])
def _table(bias, table, down, across, TOKENS: tl.constexpr):
    block, cell = tl.program_id(0), tl.arange(0, CELLS)
    row = block // across % down * ROWS + cell // 256 * 8 + cell // 32 % 8
    column = block % across * COLUMNS + cell // 2 % 4 * 8 + cell // 8 % 4 * 2 + cell % 2
    start = (block // across // down).to(tl.int64) * (TOKENS * TOKENS)
    pairs = tl.load(bias + start + row * TOKENS + column, mask=(row < TOKENS) & (column < TOKENS), other=0.0)
    pairs = tl.where(column < TOKENS, pairs.to(tl.float32), float("-inf"))
    tl.store(table + block.to(tl.int64) * CELLS + cell, pairs.to(table.dtype.element_ty))


@triton.jit
def read_table(
    table, head, row, column, DOWN: tl.constexpr, ACROSS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr
):
    """What holds the OWN x OTHER pairs from a row and a column on, multiples of 16 and 32: see `pairs_of`."""
    HIGH: tl.constexpr = OWN // ROWS
    WIDE: tl.constexpr = OTHER // COLUMNS
    HALF: tl.constexpr = CELLS // 4 if table.dtype.element_ty == tl.int32 else CELLS // 2
    block = tl.arange(0, 2 * WIDE * HIGH)  # which half, then which column, then which row of blocks
    down, across = row // ROWS + block % HIGH, column // COLUMNS + block // HIGH % WIDE
    starts = ((down * ACROSS + across) * 2 + block // (HIGH * WIDE)) * HALF
    first = table + head * (DOWN * ACROSS * 2 * HALF)
    return tl.load(first + starts[:, None] + tl.arange(0, HALF)[None, :])


@triton.jit
def pairs_of(words, dtype: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr):
    """The OWN x OTHER pairs that `read_table` has read, of a table of `dtype`, as float32."""
    if words.dtype == tl.int32:
        if dtype == tl.bfloat16:
            low, high = (words << 16).to(tl.float32, bitcast=True), (words & -65536).to(tl.float32, bitcast=True)
        else:
            low, high = words.to(tl.int16).to(dtype, bitcast=True), (words >> 16).to(tl.int16).to(dtype, bitcast=True)
        words = tl.join(low, high).to(tl.float32)
    pairs = tl.reshape(words, [2, OTHER // COLUMNS, OWN // ROWS, 8, 4, 4, 2])
    return tl.reshape(tl.permute(pairs, [2, 0, 3, 1, 5, 4, 6]), [OWN, OTHER])


@triton.jit(do_not_specialize=["heads", "parts", "slots", "tiles", "tiles_x"])
def _add_up(
    partial, gradient, heads, parts, slots, tiles, tiles_x,
    TOKENS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    cell = tl.program_id(0) // heads * WIDTH + tl.arange(0, WIDTH)
    sums = tl.zeros([HEIGHT, WIDTH], tl.float32)
    for slot in range(slots):
        row, column = slot * TOKENS + cell // TOKENS, slot * TOKENS + cell % TOKENS
        tile = (column // OTHER * tiles + row // OWN) * heads + head
        start = tile * (OWN * OTHER) + row % OWN * OTHER + column % OTHER
        for begin in range(0, parts, HEIGHT):
            part = begin + tl.arange(0, HEIGHT)
            first = part.to(tl.int64) * (tiles_x * tiles * heads) * (OWN * OTHER)
            exists = (part < parts)[:, None] & (cell < TOKENS * TOKENS)[None, :]
            sums += tl.load(partial + first[:, None] + start[None, :], mask=exists, other=0.0)
    total = tl.sum(sums, 0).to(gradient.dtype.element_ty)
    tl.store(gradient + head.to(tl.int64) * (TOKENS * TOKENS) + cell, total, mask=cell < TOKENS * TOKENS)
