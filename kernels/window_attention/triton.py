"""Window attention on a GPU: the tokens of a group are read where they lie, without copy or mask; see README.md."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.sizes import steps
from zoo.kernels.window_attention.triton_backward import backward
from zoo.kernels.window_attention.triton_groups import (
    LOG2E,
    UNSEEN,
    bias_of,
    first_pixel,
    geometry,
    is_whole,
    locate,
    packed_bias,
    packed_groups,
    packed_rows,
    program,
    read,
    readable,
    strides_of,
    tiling,
    tokens_within,
    write_map,
)

__all__ = ["backward", "forward"]

PROGRAMS = 4096
"""Enough to keep a large GPU busy: beyond, a program takes several tiles."""


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    size: list[int],
    interval: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `biased_operator`."""
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:4], dtype=torch.float32)
    q, k, v = map(readable, (q, k, v))
    table = None if bias is None else bias.to(q.dtype).contiguous()
    integers = geometry(q, size, interval)
    batch, heads, groups, tokens = q.shape[0], q.shape[3], integers[-1], size[0] * size[1]
    plan = tiling(q, tokens)
    arguments = [q, k, v, table, out, lse, scale, *strides_of(q, k, v), *integers]
    options = plan.options(q, k, v, size)
    if plan.packed:
        tiles = steps(groups, plan.own // tokens)
        chunk = max(1, batch * tiles * heads // PROGRAMS)
        grid = (steps(batch * tiles, chunk) * heads,)
        whole = is_whole(q, size, interval)
        launch(_forward_packed, grid, *arguments, tiles, batch * tiles, chunk, WHOLE=whole, **options)
    else:
        tiles = steps(tokens, plan.own)
        launch(_forward_cut, (batch * groups * tiles * heads,), *arguments, tiles, **options)
    return out, lse


@triton.jit(do_not_specialize=["height", "width", "heads", "across", "groups", "tiles", "total", "chunk"])
def _forward_packed(
    q, k, v, bias, out, lse, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, interval_y, interval_x, across, groups, tiles, total, chunk,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, OWN: tl.constexpr, WHOLE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    head, item = program(tl.program_id(0), heads)
    slot, token, whole = packed_rows(OWN, SIZE_Y * SIZE_X)
    pairs = packed_bias(bias, head, slot, token, whole, SIZE_Y * SIZE_X)
    for tile in range(item * chunk, tl.minimum((item + 1) * chunk, total)):
        image = tile // tiles
        group, exists = packed_groups(tile % tiles, slot, whole, groups, OWN, SIZE_Y * SIZE_X)
        y, x, inside = locate(group, token, exists, height, width, interval_y, interval_x, across, SIZE_Y, SIZE_X)
        queries = read(q, image, y, x, head, inside, q_b, q_y, q_x, q_h, D, BLOCK_D, ALIGN)
        keys = read(k, image, y, x, head, inside, k_b, k_y, k_x, k_h, D, BLOCK_D, ALIGN)
        values = read(v, image, y, x, head, inside, v_b, v_y, v_x, v_h, D, BLOCK_D, ALIGN)

        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * LOG2E) + pairs
        if not WHOLE:
            logits = tl.where(inside[None, :], logits, UNSEEN)
        largest = tl.max(logits, 1)
        weights = tl.exp2(logits - largest[:, None])
        sums = tl.sum(weights, 1)
        mean = tl.dot(weights.to(values.dtype), values, input_precision="ieee") / sums[:, None]

        start, pixel = first_pixel(image, height, width), y * width + x
        write_map(out, mean, start, pixel, head, heads, inside, D, BLOCK_D)
        log = (largest + tl.log2(sums)) / LOG2E
        tl.store(lse + start * heads + head + pixel * heads, log, mask=inside)


@triton.jit(do_not_specialize=["height", "width", "heads", "across", "groups", "tiles"])
def _forward_cut(
    q, k, v, bias, out, lse, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, interval_y, interval_x, across, groups, tiles,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    head, item = program(tl.program_id(0), heads)
    group, image = item // tiles % groups, item // tiles // groups
    count = tokens_within(group, height, interval_y, across, SIZE_Y, SIZE_X)
    token = item % tiles * OWN + tl.arange(0, OWN)
    y, x, inside = locate(
        group, token, token < SIZE_Y * SIZE_X, height, width, interval_y, interval_x, across, SIZE_Y, SIZE_X
    )
    queries = read(q, image, y, x, head, inside, q_b, q_y, q_x, q_h, D, BLOCK_D, ALIGN)

    largest = tl.full([OWN], UNSEEN, tl.float32)
    total = tl.zeros([OWN], tl.float32)
    mean = tl.zeros([OWN, BLOCK_D], tl.float32)
    for begin in range(0, count, OTHER):
        key = begin + tl.arange(0, OTHER)
        at_y, at_x, there = locate(
            group, key, key < SIZE_Y * SIZE_X, height, width, interval_y, interval_x, across, SIZE_Y, SIZE_X
        )
        keys = read(k, image, at_y, at_x, head, there, k_b, k_y, k_x, k_h, D, BLOCK_D, ALIGN)
        values = read(v, image, at_y, at_x, head, there, v_b, v_y, v_x, v_h, D, BLOCK_D, ALIGN)
        seen = inside[:, None] & there[None, :]
        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * LOG2E)
        logits += bias_of(bias, head, token, key, seen, there[None, :], SIZE_Y * SIZE_X)
        before, largest = largest, tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp2(logits - largest[:, None])
        shrink = tl.exp2(before - largest)
        total = total * shrink + tl.sum(weights, 1)
        mean = tl.dot(weights.to(values.dtype), values, mean * shrink[:, None], input_precision="ieee")

    start, pixel = first_pixel(image, height, width), y * width + x
    write_map(out, mean / total[:, None], start, pixel, head, heads, inside, D, BLOCK_D)
    tl.store(lse + start * heads + head + pixel * heads, (largest + tl.log2(total)) / LOG2E, mask=inside)
