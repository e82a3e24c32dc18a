"""Groups of up to 64 tokens: a tile holds as many whole groups as fit, and one product all their logits."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.sizes import ceil_div
from zoo.kernels.window_attention.triton_groups import (
    COUNTS,
    LOG2E,
    UNSEEN,
    first_pixel,
    on_map,
    origin,
    read,
    rows_of,
    share,
    weights_of,
    write_map,
)
from zoo.kernels.window_attention.triton_plan import Call, images_of, residents, tiling

PER_SM = 5
"""Programs that a multiprocessor holds at once."""


def forward(call: Call, tensors: list[torch.Tensor | None], scale: float) -> None:
    """Fill the last of q, k, v, bias, out, lse."""
    grid, integers, options = _plan(call, PER_SM)
    launch(_forward_packed, grid, *tensors, scale, *integers, **options)


@lru_cache(maxsize=1024)
def _plan(call: Call, per_sm: int) -> tuple[tuple[int], tuple[int, ...], dict[str, object]]:
    tiles, batch = tiling(call), call.shape[0]
    places = ceil_div(call.groups, tiles.own // call.tokens)
    images = images_of(places * call.heads, batch, residents(call, tiles, per_sm))
    grid = (places * call.heads * ceil_div(batch, images),)
    return grid, (*call.integers(), call.groups, places, images, batch), call.constants() | tiles.options()


@triton.jit
def packed_rows(OWN: tl.constexpr, TOKENS: tl.constexpr):
    """For each row of a tile of whole groups: the group's number in the tile, its token."""
    row = tl.arange(0, OWN)
    return row // TOKENS, row % TOKENS


@triton.jit
def packed_groups(place, slot, groups, OWN: tl.constexpr, TOKENS: tl.constexpr):
    """The group of each row of a tile of whole groups, or the only one, and which rows have one."""
    if OWN // TOKENS == 1:
        return place, slot == 0
    else:
        group = place * (OWN // TOKENS) + slot
        return group, (slot < OWN // TOKENS) & (group < groups)


@triton.jit
def packed_bias(bias, head, slot, token, OWN: tl.constexpr, TOKENS: tl.constexpr):
    """The bias of all pairs of rows of a tile, UNSEEN between groups; `bias` may be None."""
    seen = slot[:, None] == slot[None, :]
    pairs = tl.zeros([OWN, OWN], tl.float32)
    if bias is not None:
        cells = (head * TOKENS + token[:, None]) * TOKENS + token[None, :]
        pairs += tl.load(bias + cells, mask=seen & (slot < OWN // TOKENS)[:, None], other=0.0).to(tl.float32)
    return tl.where(seen, pairs, UNSEEN)


@triton.jit(do_not_specialize=COUNTS)
def _forward_packed(
    q, k, v, bias, out, lse, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, interval_y, interval_x, across, groups, places, images, batch,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, OWN: tl.constexpr, WHOLE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = SIZE_Y * SIZE_X
    head, place, first, last = share(tl.program_id(0), heads, places, images, batch)
    slot, token = packed_rows(OWN, TOKENS)
    group, exists = packed_groups(place, slot, groups, OWN, TOKENS)
    top, left = origin(group, across, interval_y, interval_x, SIZE_Y, SIZE_X)
    inside = exists & on_map(token, top, left, height, width, interval_y, interval_x, SIZE_Y, SIZE_X, WHOLE)
    pairs = tl.where(inside[None, :], packed_bias(bias, head, slot, token, OWN, TOKENS), UNSEEN)
    q_rows = rows_of(token, top, left, interval_y, interval_x, q_y, q_x, SIZE_X, ALIGN)
    k_rows = rows_of(token, top, left, interval_y, interval_x, k_y, k_x, SIZE_X, ALIGN)
    v_rows = rows_of(token, top, left, interval_y, interval_x, v_y, v_x, SIZE_X, ALIGN)
    pixel = rows_of(token, top, left, interval_y, interval_x, width, 1, SIZE_X, 1)
    for image in range(first, last):
        queries = read(q, image, q_rows, head, inside, q_b, q_h, D, BLOCK_D, ALIGN)
        keys = read(k, image, k_rows, head, inside, k_b, k_h, D, BLOCK_D, ALIGN)
        values = read(v, image, v_rows, head, inside, v_b, v_h, D, BLOCK_D, ALIGN)

        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale + pairs
        largest = tl.max(logits, 1)
        weights = weights_of(logits, largest)
        sums = tl.sum(weights, 1)
        mean = tl.dot(weights.to(values.dtype), values, input_precision=PRECISION) * (1 / sums)[:, None]

        start = first_pixel(image, height, width)
        write_map(out, mean, start, pixel, head, heads, inside, D, BLOCK_D)
        tl.store(lse + start * heads + head + pixel * heads, largest + tl.log2(sums) / LOG2E, mask=inside)
