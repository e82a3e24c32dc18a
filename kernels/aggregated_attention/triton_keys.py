"""Aggregated attention in Triton: gradients of the keys and values of the window."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.aggregated_attention.tiles import (
    POSITIONS,
    box,
    load_rows,
    offsets,
    positions,
    program,
    softmax_gradient,
    store_rows,
    tiled,
    window_bias,
)
from zoo.kernels.launch import launch

PER_SM = 4
"""Programs that run on a multiprocessor at once."""
BLOCK = 64
"""Positions of the box around a tile that are processed at once."""


def keys_gradients(
    extra: torch.Tensor,
    rows: list[torch.Tensor],
    local_bias: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    strides: list[int],
    size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of k and v; rows are grad, v, q, k."""
    k = rows[3]
    grid, integers, options = tiled(k, 1, size, PER_SM, BLOCK)
    options = {name: value for name, value in options.items() if name != "KEYS"}
    dk, dv = (torch.empty(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
    launch(_keys, grid, extra, *rows, local_bias, lse, delta, dk, dv, *strides, *integers[:-1], **options)
    return dk, dv


@triton.jit(do_not_specialize=["batch", "images"])
def _keys(
    extra, grad, v, q, k, local_bias, lse, delta, dk, dv,
    extra_batch, extra_row, extra_head, grad_batch, grad_row, v_batch, v_row, q_batch, q_row, k_batch, k_row,
    batch, images, heads, height, width,
    HEAD_DIM: tl.constexpr, CHANNELS: tl.constexpr, SIZE: tl.constexpr, TAPS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values in a few images, from the box of the queries that see them."""
    part, head, top, left = program(heads, height, width)
    index, inside = positions(top, left, height, width)
    queries, channel, column = height * width, head * HEAD_DIM, tl.arange(0, TAPS)[:, None]
    own, own_value = offsets(index, k_row, CHANNELS), offsets(index, v_row, CHANNELS)
    own_result = offsets(index, heads * HEAD_DIM, CHANNELS)
    near = ()
    for block in tl.static_range(BLOCKS):
        at, tap = box(block, top, left, height, width, SIZE, BLOCK, TAPS)
        tap = tl.where(tap < SIZE * SIZE, SIZE * SIZE - 1 - tap, TAPS - 1)  # the other way round
        taps_at = ((at * extra_row)[None, :] + column).to(tl.uint32)
        shift = window_bias(local_bias, head, tap, SIZE)
        row_at, up_at = offsets(at, q_row, CHANNELS), offsets(at, grad_row, CHANNELS)
        near += (((at * heads).to(tl.uint32), row_at, up_at, taps_at, tap, shift),)
    for step in range(0, tl.minimum(images, batch - part * images)):
        image = tl.minimum(part * images + step, batch - 1).to(tl.int64)
        one = image * queries * heads + head
        key = load_rows(k + image * k_batch + channel, own, HEAD_DIM)
        value = load_rows(v + image * v_batch + channel, own_value, HEAD_DIM)
        key_result = tl.zeros([POSITIONS, CHANNELS], tl.float32)
        value_result = tl.zeros([POSITIONS, CHANNELS], tl.float32)
        for block in tl.static_range(BLOCKS):
            total_at, row_at, up_at, taps_at, tap, shift = near[block]
            row = load_rows(q + image * q_batch + channel, row_at, HEAD_DIM)
            up = load_rows(grad + image * grad_batch + channel, up_at, HEAD_DIM)
            total, less = tl.load(lse + one + total_at)[None, :], tl.load(delta + one + total_at)[None, :]
            taps = extra + image * extra_batch + head.to(tl.int64) * extra_head + taps_at
            sheet = tl.load(taps, mask=column < SIZE * SIZE, other=0.0)
            weights, change = softmax_gradient(key, row, value, up, shift, total, less, PRECISION)
            key_result = tl.dot(change.to(row.dtype), row, key_result, input_precision=PRECISION)
            value_result = tl.dot(weights.to(up.dtype), up, value_result, input_precision=PRECISION)
            spread = tl.gather(sheet, tap, 0).to(up.dtype)
            value_result = tl.dot(spread, up, value_result, input_precision=PRECISION)
        store_rows(dk + one * HEAD_DIM, own_result, inside, key_result, HEAD_DIM)
        store_rows(dv + one * HEAD_DIM, own_result, inside, value_result, HEAD_DIM)
