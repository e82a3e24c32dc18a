"""Aggregated attention in Triton: backward.

Four kernels, none of which adds to memory that another program writes: one by tiles of queries (their own gradient,
those of `extra` and of the local bias), one by tiles of keys (which gather from the queries that see them), one by
tiles of pooled keys, and one by tiles of the pooled bias, which loops over the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.aggregated_attention.tiles import (
    LOG2E,
    as_rows,
    as_taps,
    bias_rows,
    leading_strides,
    load_rows,
    load_tap,
    neighbor,
    padded,
    program,
    softmax_gradient,
    store_rows,
    window_launch,
)
from zoo.kernels.aggregated_attention.triton_pooled import pooled_bias_gradient, pooled_keys_gradients
from zoo.kernels.launch import launch


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pooled_k: torch.Tensor,
    pooled_v: torch.Tensor,
    local_bias: torch.Tensor,
    pooled_bias: torch.Tensor,
    extra: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    size: int,
) -> tuple[torch.Tensor, ...]:
    """See `operator.backward`."""
    height, width, heads = q.shape[1:4]
    keys, map_ = pooled_bias.shape[2], (heads, height, width)
    dq, dk, dv, d_extra = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v, extra))
    lse, out, delta = lse.contiguous(), out.contiguous(), torch.empty_like(lse)
    rows = [as_rows(t) for t in (grad, q, k, v, pooled_k, pooled_v)]
    table, pooled_table, extra = local_bias.contiguous(), pooled_bias.contiguous(), as_taps(extra)

    options, grid = window_launch(q, size, 1024)
    d_table = torch.empty(grid[0] // heads, heads, size**2, dtype=torch.float32, device=q.device)
    tensors = (*rows, table, pooled_table, extra, out, lse, delta, dq, d_extra, d_table)
    strides = (*leading_strides(*rows), *extra.stride()[:3])
    wide = {"KEYS": min(32, padded(keys)), "TAPS": triton.next_power_of_2(size**2)}
    launch(_queries, grid, *tensors, *strides, *map_, keys, **options, **wide)

    tensors = (*rows[:4], table, extra, lse, delta, dk, dv)
    strides = (*leading_strides(*rows[:4]), *extra.stride()[:3])
    options, grid = window_launch(q, size, 2048)
    launch(_keys, grid, *tensors, *strides, *map_, **options)

    pairs = (rows[0], rows[1], rows[4], rows[5], pooled_table, lse, delta)
    d_pooled_k, d_pooled_v = (t.view(pooled_k.shape) for t in pooled_keys_gradients(q, pairs))
    d_pooled_bias = pooled_bias_gradient(q, pairs)
    return dq, dk, dv, d_pooled_k, d_pooled_v, d_table.sum(0).to(local_bias.dtype), d_pooled_bias, d_extra


@triton.jit
def _queries(
    grad,
    q,
    k,
    v,
    pooled_k,
    pooled_v,
    local_bias,
    pooled_bias,
    extra,
    out,
    lse,
    delta,
    dq,
    d_extra,
    d_local_bias,
    grad_batch,
    grad_row,
    q_batch,
    q_row,
    k_batch,
    k_row,
    v_batch,
    v_row,
    pooled_k_batch,
    pooled_k_row,
    pooled_v_batch,
    pooled_v_row,
    extra_batch,
    extra_row,
    extra_head,
    heads,
    height,
    width,
    keys,
    HEAD_DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Gradients of a tile of queries and of their `extra`, a part of that of the local bias, and delta.

    delta is what the softmax takes off the gradient of every weight: their sum, each times its weight. `extra` is
    behind the softmax, so its part of grad . out is none of that sum.
    """
    batch, head, first, y, x = program(heads, height, width, ROWS, COLUMNS)
    index, inside = neighbor(y, x, height, width, 0, 0)
    queries = height * width
    one = batch * queries * heads + head
    k += batch * k_batch + head * HEAD_DIM
    v += batch * v_batch + head * HEAD_DIM
    extra += batch * extra_batch + head.to(tl.int64) * extra_head
    pooled_k += batch * pooled_k_batch + head * HEAD_DIM
    pooled_v += batch * pooled_v_batch + head * HEAD_DIM
    row = load_rows(q + batch * q_batch + head * HEAD_DIM, index, inside, q_row, HEAD_DIM, CHANNELS)
    up = load_rows(grad + batch * grad_batch + head * HEAD_DIM, index, inside, grad_row, HEAD_DIM, CHANNELS)
    result = load_rows(out + one * HEAD_DIM, index, inside, heads * HEAD_DIM, HEAD_DIM, CHANNELS)
    total = tl.load(lse + one + index * heads, mask=inside, other=float("inf"))

    products = ()
    less = tl.sum(up.to(tl.float32) * result.to(tl.float32), 1)
    column = tl.arange(0, TAPS)[None, :]
    sheet = tl.zeros([ROWS * COLUMNS, TAPS], tl.float32)
    for tap in tl.static_range(SIZE * SIZE):
        near, seen = neighbor(y, x, height, width, tap // SIZE - SIZE // 2, tap % SIZE - SIZE // 2)
        near_value = load_rows(v, near, seen, v_row, HEAD_DIM, CHANNELS)
        product = tl.sum(up.to(tl.float32) * near_value.to(tl.float32), 1)
        less -= load_tap(extra, index, seen, extra_row, tap) * product
        products += (product,)
        sheet = tl.where(column == tap, product[:, None], sheet)
    taps: tl.constexpr = SIZE * SIZE
    store_rows(d_extra + one * taps, index, inside, heads * taps, sheet, taps, TAPS)
    tl.store(delta + one + index * heads, less, mask=inside)

    result = tl.zeros([ROWS * COLUMNS, CHANNELS], tl.float32)
    sheet = tl.zeros([ROWS * COLUMNS, TAPS], tl.float32)
    for tap in tl.static_range(SIZE * SIZE):
        near, seen = neighbor(y, x, height, width, tap // SIZE - SIZE // 2, tap % SIZE - SIZE // 2)
        near_key = load_rows(k, near, seen, k_row, HEAD_DIM, CHANNELS).to(tl.float32)
        logit = tl.sum(row.to(tl.float32) * near_key, 1) + tl.load(local_bias + head * taps + tap).to(tl.float32)
        change = tl.where(seen, tl.exp2((logit - total) * LOG2E) * (products[tap] - less), 0.0)
        result += change[:, None] * near_key
        sheet = tl.where(column == tap, change[:, None], sheet)
    tap = tl.arange(0, TAPS)
    tl.store(d_local_bias + tl.program_id(0).to(tl.int64) * taps + tap, tl.sum(sheet, 0), mask=tap < taps)

    pooled = tl.zeros([ROWS * COLUMNS, CHANNELS], tl.float32)
    bias = bias_rows(pooled_bias, head, queries, keys, first, index)[:, None] + tl.arange(0, KEYS)[None, :]
    for start in range(0, keys, KEYS):
        number = start + tl.arange(0, KEYS)
        key = load_rows(pooled_k, number, number < keys, pooled_k_row, HEAD_DIM, CHANNELS)
        value = load_rows(pooled_v, number, number < keys, pooled_v_row, HEAD_DIM, CHANNELS)
        shift = tl.load(bias + start, mask=(number < keys)[None, :], other=float("-inf")).to(tl.float32)
        slopes = softmax_gradient(row, key, up, value, shift, total[:, None], less[:, None])[1]
        pooled = tl.dot(slopes.to(key.dtype), key, pooled, input_precision="ieee")
    store_rows(dq + one * HEAD_DIM, index, inside, heads * HEAD_DIM, result + pooled, HEAD_DIM, CHANNELS)


@triton.jit
def _keys(
    grad,
    q,
    k,
    v,
    local_bias,
    extra,
    lse,
    delta,
    dk,
    dv,
    grad_batch,
    grad_row,
    q_batch,
    q_row,
    k_batch,
    k_row,
    v_batch,
    v_row,
    extra_batch,
    extra_row,
    extra_head,
    heads,
    height,
    width,
    HEAD_DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradients of a tile of keys and values, from the queries that see them."""
    batch, head, _, y, x = program(heads, height, width, ROWS, COLUMNS)
    index, inside = neighbor(y, x, height, width, 0, 0)
    one = batch * height * width * heads + head
    grad += batch * grad_batch + head * HEAD_DIM
    q += batch * q_batch + head * HEAD_DIM
    extra += batch * extra_batch + head.to(tl.int64) * extra_head
    key = load_rows(k + batch * k_batch + head * HEAD_DIM, index, inside, k_row, HEAD_DIM, CHANNELS).to(tl.float32)
    value = load_rows(v + batch * v_batch + head * HEAD_DIM, index, inside, v_row, HEAD_DIM, CHANNELS).to(tl.float32)

    key_result = tl.zeros([ROWS * COLUMNS, CHANNELS], tl.float32)
    value_result = tl.zeros([ROWS * COLUMNS, CHANNELS], tl.float32)
    for i in range(SIZE):
        for j in tl.static_range(SIZE):
            near, seen = neighbor(y, x, height, width, SIZE // 2 - i, SIZE // 2 - j)
            row = load_rows(q, near, seen, q_row, HEAD_DIM, CHANNELS).to(tl.float32)
            up = load_rows(grad, near, seen, grad_row, HEAD_DIM, CHANNELS).to(tl.float32)
            total = tl.load(lse + one + near * heads, mask=seen, other=float("inf"))
            less = tl.load(delta + one + near * heads, mask=seen, other=0.0)
            logit = tl.sum(row * key, 1) + tl.load(local_bias + head * SIZE * SIZE + i * SIZE + j).to(tl.float32)
            weight = tl.exp2((logit - total) * LOG2E)
            change = weight * (tl.sum(up * value, 1) - less)
            weight += load_tap(extra, near, seen, extra_row, i * SIZE + j)
            key_result += change[:, None] * row
            value_result += weight[:, None] * up
    store_rows(dk + one * HEAD_DIM, index, inside, heads * HEAD_DIM, key_result, HEAD_DIM, CHANNELS)
    store_rows(dv + one * HEAD_DIM, index, inside, heads * HEAD_DIM, value_result, HEAD_DIM, CHANNELS)
