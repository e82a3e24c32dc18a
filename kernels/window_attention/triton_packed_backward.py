"""The gradients of groups of up to 64 tokens, all in one kernel."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.sizes import ceil_div
from zoo.kernels.window_attention.triton_bias import add_up
from zoo.kernels.window_attention.triton_groups import (
    COUNTS,
    UNSEEN,
    first_pixel,
    on_map,
    origin,
    read,
    read_map,
    rows_of,
    weights_of,
    wide_share,
    write_map,
)
from zoo.kernels.window_attention.triton_packed import packed_bias, packed_groups, packed_rows
from zoo.kernels.window_attention.triton_plan import Call, residents, share_of, tiling

PER_SM = 2
"""Programs that a multiprocessor holds at once."""


def backward(
    call: Call, tensors: list[torch.Tensor | None], gradients: list[torch.Tensor], scale: float
) -> torch.Tensor | None:
    """Fill the gradients of q, k, v from q, k, v, bias, grad, lse; returns the gradient of bias."""
    grid, integers, options, sums = _plan(call, PER_SM)
    bias = tensors[3]
    partial = None if bias is None else bias.new_empty(sums, dtype=torch.float32)
    launch(_backward_packed, grid, *tensors, *gradients, partial, scale, *integers, **options)
    return None if bias is None or partial is None else add_up(partial, bias)


@lru_cache(maxsize=1024)
def _plan(call: Call, per_sm: int) -> tuple[tuple[int], tuple[int, ...], dict[str, object], tuple[int, int, int]]:
    """Grid, integers and options of the kernel, and the shape of the sums that it writes."""
    tiles, batch = tiling(call, "packed"), call.shape[0]
    slots = tiles.own // call.tokens
    places = ceil_div(call.groups, slots)
    least = ceil_div(4 * tiles.own * tiles.own, slots * call.tokens * call.shape[4] * call.bytes) if call.biased else 1
    span, images = share_of(call, call.heads, places, residents(call, tiles, per_sm), least)
    grid = (call.heads * ceil_div(places, span) * ceil_div(batch, images),)
    integers = (*call.integers(), call.groups, places, span, images, batch)
    return grid, integers, call.constants() | tiles.options(), (*grid, tiles.own, tiles.own)


@triton.jit(do_not_specialize=COUNTS)
def _backward_packed(
    q, k, v, bias, grad, lse, dq, dk, dv, partial, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, interval_y, interval_x, across, groups, places, span, images, batch,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, OWN: tl.constexpr, WHOLE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = SIZE_Y * SIZE_X
    head, begin, end, first, last = wide_share(tl.program_id(0), heads, places, span, images, batch)
    slot, token = packed_rows(OWN, TOKENS)
    pairs = packed_bias(bias, head, slot, token, OWN, TOKENS)
    if bias is not None:
        sums = tl.zeros([OWN, OWN], tl.float32)
    for place in range(begin, end):
        group, exists = packed_groups(place, slot, groups, OWN, TOKENS)
        top, left = origin(group, across, interval_y, interval_x, SIZE_Y, SIZE_X)
        inside = exists & on_map(token, top, left, height, width, interval_y, interval_x, SIZE_Y, SIZE_X, WHOLE)
        q_rows = rows_of(token, top, left, interval_y, interval_x, q_y, q_x, SIZE_X, ALIGN)
        k_rows = rows_of(token, top, left, interval_y, interval_x, k_y, k_x, SIZE_X, ALIGN)
        v_rows = rows_of(token, top, left, interval_y, interval_x, v_y, v_x, SIZE_X, ALIGN)
        pixel = rows_of(token, top, left, interval_y, interval_x, width, 1, SIZE_X, 1)
        for image in range(first, last):
            start = first_pixel(image, height, width)
            queries = read(q, image, q_rows, head, inside, q_b, q_h, D, BLOCK_D, ALIGN)
            keys = read(k, image, k_rows, head, inside, k_b, k_h, D, BLOCK_D, ALIGN)
            values = read(v, image, v_rows, head, inside, v_b, v_h, D, BLOCK_D, ALIGN)
            change = read_map(grad, start, pixel, head, heads, inside, D, BLOCK_D)
            log = tl.load(lse + start * heads + head + pixel * heads, mask=inside, other=float("inf"))

            logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale + pairs
            if not WHOLE:
                logits = tl.where(inside[None, :], logits, UNSEEN)
            weights = weights_of(logits, log)
            dvalues = tl.dot(tl.trans(weights.to(change.dtype)), change, input_precision=PRECISION)
            write_map(dv, dvalues, start, pixel, head, heads, inside, D, BLOCK_D)
            dweights = tl.dot(change, tl.trans(values), input_precision=PRECISION)
            # This equals the sum of grad * out over channels, from values that are already here.
            delta = tl.sum(weights * dweights, 1)
            dlogits = weights * (dweights - delta[:, None])
            if bias is not None:
                sums += dlogits
            dlogits = dlogits.to(keys.dtype)
            dqueries = tl.dot(dlogits, keys, input_precision=PRECISION) * scale
            write_map(dq, dqueries, start, pixel, head, heads, inside, D, BLOCK_D)
            dkeys = tl.dot(tl.trans(dlogits), queries, input_precision=PRECISION) * scale
            write_map(dk, dkeys, start, pixel, head, heads, inside, D, BLOCK_D)
    if bias is not None:
        row = tl.arange(0, OWN)
        start = tl.program_id(0).to(tl.int64) * (OWN * OWN)
        tl.store(partial + start + row[:, None] * OWN + row[None, :], sums)
