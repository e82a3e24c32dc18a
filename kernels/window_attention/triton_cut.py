"""Groups of more than 64 tokens: a program has some queries of a group, and goes through its keys in tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.window_attention.triton_bias import pairs_of, read_table
from zoo.kernels.window_attention.triton_groups import (
    COUNTS,
    LOG2E,
    UNSEEN,
    first_pixel,
    on_axis,
    on_map,
    origin,
    read,
    rows_of,
    share,
    weights_of,
    write_map,
)
from zoo.kernels.window_attention.triton_plan import Call, cut_plan

PER_SM = 4
"""Programs of four warps that a multiprocessor holds at once."""


def forward(call: Call, tensors: list[torch.Tensor | None], scale: float) -> None:
    """Fill the last of q, k, v, table, out, lse."""
    grid, integers, options = cut_plan(call, "forward", PER_SM)
    launch(_forward_cut, grid, *tensors, scale, *integers, **options)


@triton.jit
def tokens_within(top, height, interval_y, SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, WHOLE: tl.constexpr):
    """The number of tokens in those rows of a group that are on the map; all others are outside it."""
    if WHOLE:
        return SIZE_Y * SIZE_X
    else:
        return tl.minimum(tl.maximum(on_axis(top, height, interval_y), 0), SIZE_Y) * SIZE_X


@triton.jit(do_not_specialize=COUNTS)
def _forward_cut(
    q, k, v, table, out, lse, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, interval_y, interval_x, across, places, images, batch, tiles,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, WHOLE: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = SIZE_Y * SIZE_X
    head, place, first, last = share(tl.program_id(0), heads, places, images, batch)
    group, row = place // tiles, place % tiles * OWN
    top, left = origin(group, across, interval_y, interval_x, SIZE_Y, SIZE_X)
    count = tokens_within(top, height, interval_y, SIZE_Y, SIZE_X, WHOLE)
    token = row + tl.arange(0, OWN)
    inside = on_map(token, top, left, height, width, interval_y, interval_x, SIZE_Y, SIZE_X, WHOLE)
    q_rows = rows_of(token, top, left, interval_y, interval_x, q_y, q_x, SIZE_X, ALIGN)
    pixel = rows_of(token, top, left, interval_y, interval_x, width, 1, SIZE_X, 1)
    if table is not None:
        words = read_table(table, head, row, 0, DOWN, ACROSS, OWN, OTHER)
    for image in range(first, last):
        queries = read(q, image, q_rows, head, inside, q_b, q_h, D, BLOCK_D, ALIGN)
        largest = tl.full([OWN], UNSEEN, tl.float32)
        total = tl.zeros([OWN], tl.float32)
        mean = tl.zeros([OWN, BLOCK_D], tl.float32)
        for begin in range(0, count, OTHER):
            key = begin + tl.arange(0, OTHER)
            there = on_map(key, top, left, height, width, interval_y, interval_x, SIZE_Y, SIZE_X, WHOLE)
            k_rows = rows_of(key, top, left, interval_y, interval_x, k_y, k_x, SIZE_X, ALIGN)
            v_rows = rows_of(key, top, left, interval_y, interval_x, v_y, v_x, SIZE_X, ALIGN)
            keys = read(k, image, k_rows, head, there, k_b, k_h, D, BLOCK_D, ALIGN)
            values = read(v, image, v_rows, head, there, v_b, v_h, D, BLOCK_D, ALIGN)
            logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
            if table is not None:
                logits += pairs_of(words, q.dtype.element_ty, OWN, OTHER)
                after = tl.where(begin + OTHER < count, begin + OTHER, 0)
                words = read_table(table, head, row, after, DOWN, ACROSS, OWN, OTHER)
            if not WHOLE or (table is None and TOKENS % OTHER > 0):
                logits = tl.where(there[None, :], logits, UNSEEN)
            before, largest = largest, tl.maximum(largest, tl.max(logits, 1))
            weights = weights_of(logits, largest)
            shrink = tl.exp2((before - largest) * LOG2E)
            total = total * shrink + tl.sum(weights, 1)
            mean = tl.dot(weights.to(values.dtype), values, mean * shrink[:, None], input_precision=PRECISION)

        start = first_pixel(image, height, width)
        write_map(out, mean * (1 / total)[:, None], start, pixel, head, heads, inside, D, BLOCK_D)
        tl.store(lse + start * heads + head + pixel * heads, largest + tl.log2(total) / LOG2E, mask=inside)
