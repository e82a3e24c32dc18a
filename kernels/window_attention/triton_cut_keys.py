"""The gradients of keys and values in groups of more than 64 tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.window_attention.triton_bias import pairs_of, read_table
from zoo.kernels.window_attention.triton_cut import tokens_within
from zoo.kernels.window_attention.triton_groups import (
    COUNTS,
    first_pixel,
    on_map,
    origin,
    read,
    read_map,
    rows_of,
    share,
    weights_and_dlogits,
    write_map,
)
from zoo.kernels.window_attention.triton_plan import Call, cut_plan

PER_SM = 2
"""Programs of four warps that a multiprocessor holds at once."""


def keys(call: Call, tensors: list[torch.Tensor | None], scale: float) -> None:
    """Fill the last of q, k, v, table, grad, lse, delta, dk, dv: dk and dv."""
    grid, integers, options = cut_plan(call, "keys", PER_SM)
    launch(_backward_keys, grid, *tensors, scale, *integers, **options)


@triton.jit(do_not_specialize=COUNTS)
def _backward_keys(
    q, k, v, table, grad, lse, delta, dk, dv, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, interval_y, interval_x, across, places, images, batch, tiles,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, WHOLE: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Keys outside the map have rows of their own here, which are not written.
    head, place, first, last = share(tl.program_id(0), heads, places, images, batch)
    group, column = place // tiles, place % tiles * OWN
    top, left = origin(group, across, interval_y, interval_x, SIZE_Y, SIZE_X)
    count = tokens_within(top, height, interval_y, SIZE_Y, SIZE_X, WHOLE)
    key = column + tl.arange(0, OWN)
    there = on_map(key, top, left, height, width, interval_y, interval_x, SIZE_Y, SIZE_X, WHOLE)
    k_rows = rows_of(key, top, left, interval_y, interval_x, k_y, k_x, SIZE_X, ALIGN)
    v_rows = rows_of(key, top, left, interval_y, interval_x, v_y, v_x, SIZE_X, ALIGN)
    place_of = rows_of(key, top, left, interval_y, interval_x, width, 1, SIZE_X, 1)
    words = None
    if table is not None:
        words = read_table(table, head, 0, column, DOWN, ACROSS, OTHER, OWN)
    for image in range(first, last):
        start = first_pixel(image, height, width)
        keys = read(k, image, k_rows, head, there, k_b, k_h, D, BLOCK_D, ALIGN)
        values = read(v, image, v_rows, head, there, v_b, v_h, D, BLOCK_D, ALIGN)
        dkeys = tl.zeros([OWN, BLOCK_D], tl.float32)
        dvalues = tl.zeros([OWN, BLOCK_D], tl.float32)
        for begin in range(0, count, OTHER):
            token = begin + tl.arange(0, OTHER)
            inside = on_map(token, top, left, height, width, interval_y, interval_x, SIZE_Y, SIZE_X, WHOLE)
            q_rows = rows_of(token, top, left, interval_y, interval_x, q_y, q_x, SIZE_X, ALIGN)
            pixel = rows_of(token, top, left, interval_y, interval_x, width, 1, SIZE_X, 1)
            queries = read(q, image, q_rows, head, inside, q_b, q_h, D, BLOCK_D, ALIGN)
            change = read_map(grad, start, pixel, head, heads, inside, D, BLOCK_D)
            log = tl.load(lse + start * heads + head + pixel * heads, mask=inside, other=float("inf"))
            offset = tl.load(delta + start * heads + head + pixel * heads, mask=inside, other=0.0)
            pairs = None
            if table is not None:
                pairs = pairs_of(words, q.dtype.element_ty, OTHER, OWN)
            weights, dlogits = weights_and_dlogits(
                queries, keys, values, change, log, offset, pairs, there, scale, False, PRECISION
            )
            dvalues = tl.dot(tl.trans(weights.to(change.dtype)), change, dvalues, input_precision=PRECISION)
            dkeys = tl.dot(tl.trans(dlogits.to(queries.dtype)), queries, dkeys, input_precision=PRECISION)
            if table is not None:
                after = tl.where(begin + OTHER < count, begin + OTHER, 0)
                words = read_table(table, head, after, column, DOWN, ACROSS, OTHER, OWN)
        write_map(dk, dkeys * scale, start, place_of, head, heads, there, D, BLOCK_D)
        write_map(dv, dvalues, start, place_of, head, heads, there, D, BLOCK_D)
