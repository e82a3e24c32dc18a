"""Neighborhood attention on a GPU: no copies of keys, no table of pairs; see README.md."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.neighborhood_attention.triton_backward import backward
from zoo.kernels.neighborhood_attention.triton_lattice import (
    LOG2E,
    key_block,
    keys_of,
    layout,
    locate,
    positive,
    read,
    readable,
    strides_of,
    tile,
    tile_ranks,
    window_start,
    write,
)

__all__ = ["backward", "forward"]


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    size: list[int],
    dilation: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `biased_operator`."""
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:4], dtype=torch.float32)
    q, scale = positive(q, scale)
    (q,), (k, v) = readable(q), readable(k, v)
    plan = layout(q, k, size, dilation)
    unit, *numbers = *strides_of(q, k), *plan.integers
    table = None if bias is None else bias.contiguous()
    options = plan.options | plan.keys | {"UNIT": unit}
    if 0 < options["BLOCKS"] <= 6:
        options["num_stages"] = 3  # the next image's keys come while this one's are at work
    launch(_forward, plan.grid, q, k, v, table, out, lse, scale, *numbers, **options)
    return out, lse


@triton.jit
def _attend(queries, keys, values, table, scale, largest, total, mean):
    """One step of the softmax over blocks of keys."""
    scale *= LOG2E
    logits = tl.dot(queries, tl.trans(keys), table, input_precision="ieee")
    before, largest = largest, tl.maximum(largest, tl.max(logits, 1))
    weights = tl.exp2(logits * scale - (largest * scale)[:, None])
    shrink = tl.exp2((before - largest) * scale)
    total = total * shrink + tl.sum(weights, 1)
    mean = tl.dot(weights.to(values.dtype), values, mean * shrink[:, None], input_precision="ieee")
    return largest, total, mean


@triton.jit(do_not_specialize=["batch", "share"])
def _forward(
    q, k, v, bias, out, lse, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h,
    batch, share, height, width, heads, dilation_y, dilation_x, down, across,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    item = tl.program_id(0) // heads
    image, group, members_y, members_x, first_y, first_x = tile(
        item, height, width, dilation_y, dilation_x, down, across, TILE_Y, TILE_X
    )
    y, x, inside = tile_ranks(first_y, first_x, members_y, members_x, TILE_Y, TILE_X)
    from_y, from_x = window_start(y, members_y, SIZE_Y), window_start(x, members_x, SIZE_X)
    start_y, rows = keys_of(first_y, members_y, SIZE_Y, TILE_Y)
    start_x, columns = keys_of(first_x, members_x, SIZE_X, TILE_X)
    image *= share
    q += UNIT * locate(image, group, first_y, first_x, head, q_b, q_y, q_x, q_h)
    k += UNIT * locate(image, group, start_y, start_x, head, k_b, k_y, k_x, k_h)
    v += UNIT * locate(image, group, start_y, start_x, head, k_b, k_y, k_x, k_h)
    rows_b, rows_y = height * width * heads, width * heads
    first_row = locate(image, group, first_y, first_x, head, rows_b, rows_y, heads, 1)
    down_y, down_x = (y - first_y) * dilation_y, (x - first_x) * dilation_x
    own, row = down_y * q_y + down_x * q_x, down_y * rows_y + down_x * heads
    box = (start_y, start_x, rows, columns)
    strides = (dilation_y * k_y, dilation_x * k_x)

    kept = ()
    for block in tl.static_range(BLOCKS):
        new = key_block(block * BLOCK, y, x, from_y, from_x, box, strides, bias, head, scale, SIZE_Y, SIZE_X, BLOCK)
        kept += (new,)
    for step in range(0, tl.minimum(share, batch - image)):
        queries = read(q, own + step * q_b, UNIT, D, BLOCK_D)
        largest = tl.full([TILE_Y * TILE_X], -1e30, tl.float32)  # finite: a block may hold no key of a query
        total = tl.zeros([TILE_Y * TILE_X], tl.float32)
        mean = tl.zeros([TILE_Y * TILE_X, BLOCK_D], tl.float32)
        for block in tl.static_range(BLOCKS):
            at, table = kept[block]
            keys = read(k, at + step * k_b, UNIT, D, BLOCK_D)
            values = read(v, at + step * k_b, UNIT, D, BLOCK_D)
            largest, total, mean = _attend(queries, keys, values, table, scale, largest, total, mean)
        if BLOCKS == 0:
            for begin in range(0, rows * columns, BLOCK):
                at, table = key_block(
                    begin, y, x, from_y, from_x, box, strides, bias, head, scale, SIZE_Y, SIZE_X, BLOCK
                )
                keys = read(k, at + step * k_b, UNIT, D, BLOCK_D)
                values = read(v, at + step * k_b, UNIT, D, BLOCK_D)
                largest, total, mean = _attend(queries, keys, values, table, scale, largest, total, mean)
        at = row + step * rows_b
        write(out + first_row * D, at, mean * (1.0 / total)[:, None], inside, D, BLOCK_D)
        tl.store(lse + first_row + at, largest * scale + tl.log2(total) / LOG2E, mask=inside)
