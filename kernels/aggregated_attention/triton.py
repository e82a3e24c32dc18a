"""Aggregated attention in Triton: forward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.aggregated_attention.tiles import (
    LN2,
    LOG2E,
    POSITIONS,
    bias_rows,
    box,
    layout,
    load_rows,
    offsets,
    pooled_rows,
    pooled_shift,
    positions,
    program,
    store_rows,
    tiled,
    window_bias,
)
from zoo.kernels.aggregated_attention.triton_backward import backward
from zoo.kernels.launch import launch

__all__ = ["backward", "forward"]

PER_SM = 4
"""Programs that run on a multiprocessor at once."""
BLOCK = 64
"""Positions of the box around a tile that are processed at once."""
KEPT = 64
"""The most pooled keys for which a tile's part of their bias stays in registers from image to image."""


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pooled_k: torch.Tensor,
    pooled_v: torch.Tensor,
    local_bias: torch.Tensor,
    pooled_bias: torch.Tensor,
    extra: torch.Tensor,
    size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `operator.forward`."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:4], dtype=torch.float32, device=q.device)
    rows, strides = layout(extra, q, k, v, pooled_k, pooled_v)
    biases = local_bias.contiguous(), pooled_bias.contiguous()
    keys = pooled_bias.shape[2]
    grid, integers, options = tiled(q, keys, size, PER_SM, BLOCK)
    kept = triton.cdiv(keys, options["KEYS"]) if keys <= KEPT else 0
    launch(_forward, grid, *rows, *biases, out, lse, *strides, *integers, **options, KEPT=kept)
    return out, lse


@triton.jit
def _attend(queries, keys, values, shift, largest, total, mean, PRECISION: tl.constexpr):
    """One step of the softmax over blocks of keys."""
    scores = tl.dot(queries, tl.trans(keys), shift, input_precision=PRECISION)
    before, largest = largest, tl.maximum(largest, tl.max(scores, 1))
    weights = tl.exp2(scores * LOG2E - (largest * LOG2E)[:, None])
    shrink = tl.exp2((before - largest) * LOG2E)
    total = total * shrink + tl.sum(weights, 1)
    mean = tl.dot(weights.to(values.dtype), values, mean * shrink[:, None], input_precision=PRECISION)
    return largest, total, mean


@triton.jit(do_not_specialize=["batch", "images"])
def _forward(
    extra, q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, out, lse,
    extra_batch, extra_row, extra_head, q_batch, q_row, k_batch, k_row, v_batch, v_row,
    pooled_k_batch, pooled_k_row, pooled_v_batch, pooled_v_row,
    batch, images, heads, height, width, keys,
    HEAD_DIM: tl.constexpr, CHANNELS: tl.constexpr, SIZE: tl.constexpr, TAPS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, KEYS: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of queries in a few images: the window, block by block, then the pooled keys, in one softmax.

    `extra` is expanded to the pairs of a block like the weights, and multiplied with the values in its own product.
    """
    part, head, top, left = program(heads, height, width)
    index, inside = positions(top, left, height, width)
    queries, channel = height * width, head * HEAD_DIM
    own, result = offsets(index, q_row, CHANNELS), offsets(index, heads * HEAD_DIM, CHANNELS)
    own_total, own_taps = (index * heads).to(tl.uint32), offsets(index, extra_row, TAPS)
    near = ()
    for block in tl.static_range(BLOCKS):
        at, tap = box(block, top, left, height, width, SIZE, BLOCK, TAPS)
        window = window_bias(local_bias, head, tap, SIZE)
        near += ((offsets(at, k_row, CHANNELS), offsets(at, v_row, CHANNELS), tap, window),)
    bias = bias_rows(pooled_bias, head, queries, keys, top * width + left, index)
    shifts = ()
    for block in tl.static_range(KEPT):
        shifts += (pooled_shift(bias, block * KEYS, keys, KEYS),)
    for step in range(0, tl.minimum(images, batch - part * images)):
        image = tl.minimum(part * images + step, batch - 1).to(tl.int64)
        far_k, far_v = pooled_k + image * pooled_k_batch + channel, pooled_v + image * pooled_v_batch + channel
        row = load_rows(q + image * q_batch + channel, own, HEAD_DIM)
        sheet = load_rows(extra + image * extra_batch + head.to(tl.int64) * extra_head, own_taps, SIZE * SIZE)
        largest = tl.full([POSITIONS], -1e30, tl.float32)  # finite: a block may hold no key of a query
        total = tl.zeros([POSITIONS], tl.float32)
        mean = tl.zeros([POSITIONS, CHANNELS], tl.float32)
        values = ()
        for block in tl.static_range(BLOCKS):
            key_at, value_at, tap, window = near[block]
            key = load_rows(k + image * k_batch + channel, key_at, HEAD_DIM)
            value = load_rows(v + image * v_batch + channel, value_at, HEAD_DIM)
            largest, total, mean = _attend(row, key, value, window, largest, total, mean, PRECISION)
            values += (value,)
        for block in tl.static_range(KEPT):
            start = block * KEYS
            key, value = pooled_rows(far_k, far_v, pooled_k_row, pooled_v_row, start, keys, HEAD_DIM, CHANNELS, KEYS)
            largest, total, mean = _attend(row, key, value, shifts[block], largest, total, mean, PRECISION)
        for start in range(0, 0 if KEPT else keys, KEYS):
            far_key, far_value = pooled_rows(
                far_k, far_v, pooled_k_row, pooled_v_row, start, keys, HEAD_DIM, CHANNELS, KEYS
            )
            shift = pooled_shift(bias, start, keys, KEYS)
            largest, total, mean = _attend(row, far_key, far_value, shift, largest, total, mean, PRECISION)
        mean *= (1.0 / total)[:, None]
        for block in tl.static_range(BLOCKS):
            spread = tl.gather(sheet, near[block][2], 1).to(row.dtype)
            mean = tl.dot(spread, values[block], mean, input_precision=PRECISION)
        one = image * queries * heads + head
        store_rows(out + one * HEAD_DIM, result, inside, mean, HEAD_DIM)
        tl.store(lse + one + own_total, largest + tl.log2(total) * LN2, mask=inside)
