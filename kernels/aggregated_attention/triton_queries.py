"""Aggregated attention in Triton: gradients of the queries and of the local bias."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.aggregated_attention.tiles import (
    POSITIONS,
    TILE_X,
    bias_rows,
    box,
    load_rows,
    offsets,
    pooled_rows,
    pooled_shift,
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
BLOCK = 32
"""Positions of the box around a tile that are processed at once; with 64, sums of pairs do not fit in registers."""


def queries_gradients(
    rows: list[torch.Tensor],
    local_bias: torch.Tensor,
    pooled_bias: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    strides: list[int],
    size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of q and of the local bias; rows are grad, v, q, k, pooled_k, pooled_v."""
    q = rows[2]
    grid, integers, options = tiled(q, pooled_bias.shape[2], size, PER_SM, BLOCK)
    heads = q.shape[3]
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    sums = torch.empty(grid[0] // heads, heads, size**2, dtype=torch.float32, device=q.device)
    tensors = (*rows, local_bias, pooled_bias, lse, delta, dq, sums)
    launch(_queries, grid, *tensors, *strides, *integers, **options)
    return dq, sums.sum(0).to(local_bias.dtype)


@triton.jit(do_not_specialize=["batch", "images"])
def _queries(
    grad, v, q, k, pooled_k, pooled_v, local_bias, pooled_bias, lse, delta, dq, d_local_bias,
    grad_batch, grad_row, v_batch, v_row, q_batch, q_row, k_batch, k_row,
    pooled_k_batch, pooled_k_row, pooled_v_batch, pooled_v_row,
    batch, images, heads, height, width, keys,
    HEAD_DIM: tl.constexpr, CHANNELS: tl.constexpr, SIZE: tl.constexpr, TAPS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries in a few images, and a part of the gradient of the local bias."""
    part, head, top, left = program(heads, height, width)
    index, inside = positions(top, left, height, width)
    queries, channel = height * width, head * HEAD_DIM
    own, own_grad = offsets(index, q_row, CHANNELS), offsets(index, grad_row, CHANNELS)
    own_result, own_total = offsets(index, heads * HEAD_DIM, CHANNELS), (index * heads).to(tl.uint32)
    near, sums = (), ()
    for block in tl.static_range(BLOCKS):
        at, tap = box(block, top, left, height, width, SIZE, BLOCK, TAPS)
        window = window_bias(local_bias, head, tap, SIZE)
        near += ((offsets(at, k_row, CHANNELS), offsets(at, v_row, CHANNELS), window),)
        sums += (tl.zeros([POSITIONS, BLOCK], tl.float32),)
    bias = bias_rows(pooled_bias, head, queries, keys, top * width + left, index)
    for step in range(0, tl.minimum(images, batch - part * images)):
        image = tl.minimum(part * images + step, batch - 1).to(tl.int64)
        one = image * queries * heads + head
        far_k, far_v = pooled_k + image * pooled_k_batch + channel, pooled_v + image * pooled_v_batch + channel
        row = load_rows(q + image * q_batch + channel, own, HEAD_DIM)
        up = load_rows(grad + image * grad_batch + channel, own_grad, HEAD_DIM)
        total, less = tl.load(lse + one + own_total)[:, None], tl.load(delta + one + own_total)[:, None]
        result = tl.zeros([POSITIONS, CHANNELS], tl.float32)
        for start in range(0, keys, KEYS):
            key, value = pooled_rows(far_k, far_v, pooled_k_row, pooled_v_row, start, keys, HEAD_DIM, CHANNELS, KEYS)
            shift = pooled_shift(bias, start, keys, KEYS)
            change = softmax_gradient(row, key, up, value, shift, total, less, PRECISION)[1]
            result = tl.dot(change.to(key.dtype), key, result, input_precision=PRECISION)
        more = ()
        for block in tl.static_range(BLOCKS):
            key_at, value_at, window = near[block]
            key = load_rows(k + image * k_batch + channel, key_at, HEAD_DIM)
            value = load_rows(v + image * v_batch + channel, value_at, HEAD_DIM)
            change = softmax_gradient(row, key, up, value, window, total, less, PRECISION)[1]
            result = tl.dot(change.to(key.dtype), key, result, input_precision=PRECISION)
            more += (sums[block] + change,)
        sums = more
        store_rows(dq + one * HEAD_DIM, own_result, inside, result, HEAD_DIM)

    tap = tl.arange(0, TAPS)
    by_tap = tl.zeros([TAPS], tl.float32)
    for block in tl.static_range(BLOCKS):
        by_tap += _by_tap(sums[block], block, SIZE, BLOCK, TAPS)
    tl.store(d_local_bias + tl.program_id(0).to(tl.int64) * (SIZE * SIZE) + tap, by_tap, mask=tap < SIZE * SIZE)


@triton.jit
def _by_tap(pairs, block, SIZE: tl.constexpr, BLOCK: tl.constexpr, TAPS: tl.constexpr):
    """Sums of (POSITIONS, BLOCK) by tap."""
    WIDTH: tl.constexpr = TILE_X + SIZE - 1
    within, tap = tl.arange(0, POSITIONS)[:, None], tl.arange(0, TAPS)[None, :]
    place = (within // TILE_X + tap // SIZE) * WIDTH + within % TILE_X + tap % SIZE - block * BLOCK
    there = (place >= 0) & (place < BLOCK) & (tap < SIZE * SIZE)
    return tl.sum(tl.where(there, tl.gather(pairs, tl.where(there, place, 0), 1), 0.0), 0)
