"""The gradient of the bias of groups of more than 64 tokens: pair by pair of tiles, over many groups."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.sizes import ceil_div
from zoo.kernels.window_attention.triton_bias import add_up, pairs_of, read_table
from zoo.kernels.window_attention.triton_groups import (
    COUNTS,
    first_pixel,
    on_map,
    origin,
    read,
    read_map,
    rows_of,
    weights_and_dlogits,
    wide_share,
)
from zoo.kernels.window_attention.triton_plan import Call, residents, share_of, tiling

PER_SM = 3
"""Programs of four warps that a multiprocessor holds at once."""


def bias_gradient(call: Call, tensors: list[torch.Tensor], bias: torch.Tensor, scale: float) -> torch.Tensor:
    """The gradient of bias from q, k, v, table, grad, lse, delta."""
    grid, integers, options, sums = _plan(call, PER_SM)
    partial = bias.new_empty(sums, dtype=torch.float32)
    launch(_backward_bias, grid, *tensors, partial, scale, *integers, **options)
    return add_up(partial, bias)


@lru_cache(maxsize=1024)
def _plan(call: Call, per_sm: int) -> tuple[tuple[int], tuple[int, ...], dict[str, object], tuple[int, int, int]]:
    """Grid, integers and options of the kernel, and the shape of its output."""
    tile, batch = tiling(call, "bias"), call.shape[0]
    tiles, tiles_x = ceil_div(call.tokens, tile.own), ceil_div(call.tokens, tile.other)
    pairs, resident = tiles * tiles_x, residents(call, tile, per_sm)
    least = ceil_div(4 * pairs * tile.own * tile.other, call.tokens * call.shape[4] * call.bytes)
    span, images = share_of(call, call.heads * pairs, call.groups, resident, least)
    grid = (call.heads * pairs * ceil_div(call.groups, span) * ceil_div(batch, images),)
    integers = (*call.integers(), call.groups, span, images, batch, tiles, tiles_x)
    options = call.constants() | call.table() | tile.options()
    return grid, integers, options, (*grid, tile.own, tile.other)


@triton.jit(do_not_specialize=COUNTS)
def _backward_bias(
    q, k, v, table, grad, lse, delta, partial, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, interval_y, interval_x, across, places, span, images, batch, tiles, tiles_x,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, WHOLE: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    number, tile = tl.program_id(0) // heads, tl.program_id(0) // heads % (tiles * tiles_x)
    number = number // (tiles * tiles_x) * heads + tl.program_id(0) % heads
    head, begin, end, first, last = wide_share(number, heads, places, span, images, batch)
    row, column = tile % tiles * OWN, tile // tiles * OTHER
    token, key = row + tl.arange(0, OWN), column + tl.arange(0, OTHER)
    pairs = pairs_of(read_table(table, head, row, column, DOWN, ACROSS, OWN, OTHER), q.dtype.element_ty, OWN, OTHER)
    sums = tl.zeros([OWN, OTHER], tl.float32)
    for place in range(begin, end):
        top, left = origin(place, across, interval_y, interval_x, SIZE_Y, SIZE_X)
        inside = on_map(token, top, left, height, width, interval_y, interval_x, SIZE_Y, SIZE_X, WHOLE)
        there = on_map(key, top, left, height, width, interval_y, interval_x, SIZE_Y, SIZE_X, WHOLE)
        q_rows = rows_of(token, top, left, interval_y, interval_x, q_y, q_x, SIZE_X, ALIGN)
        k_rows = rows_of(key, top, left, interval_y, interval_x, k_y, k_x, SIZE_X, ALIGN)
        v_rows = rows_of(key, top, left, interval_y, interval_x, v_y, v_x, SIZE_X, ALIGN)
        pixel = rows_of(token, top, left, interval_y, interval_x, width, 1, SIZE_X, 1)
        for image in range(first, last):
            start = first_pixel(image, height, width)
            queries = read(q, image, q_rows, head, inside, q_b, q_h, D, BLOCK_D, ALIGN)
            keys = read(k, image, k_rows, head, there, k_b, k_h, D, BLOCK_D, ALIGN)
            values = read(v, image, v_rows, head, there, v_b, v_h, D, BLOCK_D, ALIGN)
            change = read_map(grad, start, pixel, head, heads, inside, D, BLOCK_D)
            log = tl.load(lse + start * heads + head + pixel * heads, mask=inside, other=float("inf"))
            offset = tl.load(delta + start * heads + head + pixel * heads, mask=inside, other=0.0)
            _, dlogits = weights_and_dlogits(
                queries, keys, values, change, log, offset, pairs, there, scale, not WHOLE, PRECISION
            )
            sums += dlogits
    start = tl.program_id(0).to(tl.int64) * (OWN * OTHER)
    tl.store(partial + start + tl.arange(0, OWN)[:, None] * OTHER + tl.arange(0, OTHER)[None, :], sums)
