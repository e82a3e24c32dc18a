"""Aggregated attention in Triton: gradients of the pooled keys and values and of their bias."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.aggregated_attention.tiles import (
    bias_rows,
    load_rows,
    loop_length,
    offsets,
    padded,
    softmax_gradient,
    store_rows,
)
from zoo.kernels.launch import input_precision, launch, multiprocessors

PER_SM = 4
"""Programs that run on a multiprocessor at once."""


def pooled_keys_gradients(pairs: tuple[torch.Tensor, ...], strides: list[int]) -> list[torch.Tensor]:
    """The queries are split among programs, each of which writes a sum of its own."""
    q, keys = pairs[1], pairs[4].shape[2]
    batch, height, width, heads, _ = q.shape
    options = _options(q, keys, 32, 64)
    items = batch * heads * triton.cdiv(keys, options["KEYS"])
    tiles = triton.cdiv(height * width, options["POSITIONS"])
    loop = max(min(tiles, 4), loop_length(tiles, items, PER_SM * multiprocessors(q.device)))
    parts = triton.cdiv(tiles, loop)
    dtype, shape = torch.float32 if parts > 1 else q.dtype, (parts, *pairs[2].shape)
    sums = [torch.empty(shape, dtype=dtype, device=q.device) for _ in range(2)]
    integers = batch, heads, height * width, keys, loop, parts
    launch(_pooled_keys, (items * parts,), *pairs, *sums, *strides, *integers, **options)
    return [t[0] if parts == 1 else t.sum(0).to(q.dtype) for t in sums]


def pooled_bias_gradient(pairs: tuple[torch.Tensor, ...], strides: list[int]) -> torch.Tensor:
    """The batch is split among programs, each of which writes a sum of its own."""
    q, bias = pairs[1], pairs[4]
    batch, height, width, heads, _ = q.shape
    keys, options = bias.shape[2], _options(q, bias.shape[2], 64, 32)
    items = heads * triton.cdiv(height * width, options["POSITIONS"]) * triton.cdiv(keys, options["KEYS"])
    images = max(min(batch, 8), loop_length(batch, items, PER_SM * multiprocessors(q.device)))
    parts = triton.cdiv(batch, images) if batch else 1
    sums = torch.empty(parts, *bias.shape, dtype=torch.float32 if parts > 1 else bias.dtype, device=q.device)
    integers = batch, heads, height * width, keys, images
    launch(_pooled_bias, (items * parts,), *pairs, sums, *strides, *integers, **options)
    return sums[0] if parts == 1 else sums.sum(0).to(bias.dtype)


def _options(q: torch.Tensor, keys: int, positions: int, most_keys: int) -> dict[str, object]:
    """Constants and launch parameters of a kernel whose tiles are runs of positions and of pooled keys."""
    channels, precision = padded(q.shape[-1]), input_precision(q)
    return {
        "HEAD_DIM": q.shape[-1],
        "CHANNELS": channels,
        "POSITIONS": positions // (2 if channels > 64 else 1),
        "KEYS": min(most_keys // (2 if channels > 32 else 1), padded(keys)),
        "PRECISION": precision,
        "num_warps": 8 if q.dtype == torch.float32 and precision == "ieee" else 4,
        "num_stages": 2,
    }


@triton.jit
def _pooled_keys(
    grad,
    q,
    pooled_k,
    pooled_v,
    pooled_bias,
    lse,
    delta,
    d_pooled_k,
    d_pooled_v,
    grad_batch,
    grad_row,
    q_batch,
    q_row,
    pooled_k_batch,
    pooled_k_row,
    pooled_v_batch,
    pooled_v_row,
    batches,
    heads,
    queries,
    keys,
    loop,
    parts,
    HEAD_DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a tile of pooled keys and values, from `loop` tiles of queries."""
    index = tl.program_id(0)
    head, part, tile = index % heads, index // heads % parts, index // (heads * parts)
    batch, tile = (tile % batches).to(tl.int64), tile // batches
    number = tile * KEYS + tl.arange(0, KEYS)
    present = number < keys
    grad += batch * grad_batch + head * HEAD_DIM
    q += batch * q_batch + head * HEAD_DIM
    pooled_k += batch * pooled_k_batch + head * HEAD_DIM
    pooled_v += batch * pooled_v_batch + head * HEAD_DIM
    one = batch * queries * heads + head
    number = tl.minimum(number, keys - 1)
    key = load_rows(pooled_k, offsets(number, pooled_k_row, CHANNELS), HEAD_DIM)
    value = load_rows(pooled_v, offsets(number, pooled_v_row, CHANNELS), HEAD_DIM)

    key_result = tl.zeros([KEYS, CHANNELS], tl.float32)
    value_result = tl.zeros([KEYS, CHANNELS], tl.float32)
    begin = part * loop * POSITIONS
    for first in range(begin, tl.minimum(queries, begin + loop * POSITIONS), POSITIONS):
        query = first + tl.arange(0, POSITIONS)
        inside = query < queries
        query = tl.minimum(query, queries - 1)
        row = load_rows(q, offsets(query, q_row, CHANNELS), HEAD_DIM)
        up = load_rows(grad, offsets(query, grad_row, CHANNELS), HEAD_DIM)
        total = tl.load(lse + one + query * heads, mask=inside, other=float("inf"))
        less = tl.load(delta + one + query * heads)
        bias = bias_rows(pooled_bias + tile * KEYS, head, queries, keys, first, query)[None, :]
        bias += tl.arange(0, KEYS)[:, None]
        shift = tl.load(bias, mask=present[:, None], other=float("-inf")).to(tl.float32)
        weights, change = softmax_gradient(key, row, value, up, shift, total[None, :], less[None, :], PRECISION)
        key_result = tl.dot(change.to(row.dtype), row, key_result, input_precision=PRECISION)
        value_result = tl.dot(weights.to(up.dtype), up, value_result, input_precision=PRECISION)
    one = ((part * batches + batch) * keys * heads + head) * HEAD_DIM
    result = offsets(number, heads * HEAD_DIM, CHANNELS)
    store_rows(d_pooled_k + one, result, present, key_result, HEAD_DIM)
    store_rows(d_pooled_v + one, result, present, value_result, HEAD_DIM)


@triton.jit
def _pooled_bias(
    grad,
    q,
    pooled_k,
    pooled_v,
    pooled_bias,
    lse,
    delta,
    d_pooled_bias,
    grad_batch,
    grad_row,
    q_batch,
    q_row,
    pooled_k_batch,
    pooled_k_row,
    pooled_v_batch,
    pooled_v_row,
    batches,
    heads,
    queries,
    keys,
    images,
    HEAD_DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of a tile of the pooled bias, from `images` of the batch."""
    index = tl.program_id(0)
    tiles, key_tiles = tl.cdiv(queries, POSITIONS), tl.cdiv(keys, KEYS)
    head, key_tile, tile = index % heads, index // heads % key_tiles, index // (heads * key_tiles)
    part, tile = (tile // tiles).to(tl.int64), tile % tiles
    first = tile * POSITIONS
    query, number = first + tl.arange(0, POSITIONS), key_tile * KEYS + tl.arange(0, KEYS)
    inside, present = query < queries, number < keys
    query, number = tl.minimum(query, queries - 1), tl.minimum(number, keys - 1)
    bias = bias_rows(pooled_bias + key_tile * KEYS, head, queries, keys, first, query)
    bias = bias[:, None] + tl.arange(0, KEYS)[None, :]
    shift = tl.load(bias, mask=present[None, :], other=float("-inf")).to(tl.float32)
    own, own_grad = offsets(query, q_row, CHANNELS), offsets(query, grad_row, CHANNELS)
    key_at, value_at = offsets(number, pooled_k_row, CHANNELS), offsets(number, pooled_v_row, CHANNELS)
    begin = part * images
    grad += begin * grad_batch + head * HEAD_DIM
    q += begin * q_batch + head * HEAD_DIM
    pooled_k += begin * pooled_k_batch + head * HEAD_DIM
    pooled_v += begin * pooled_v_batch + head * HEAD_DIM
    lse += begin * queries * heads + head
    delta += begin * queries * heads + head

    result = tl.zeros([POSITIONS, KEYS], tl.float32)
    for _image in range(begin, tl.minimum(batches, begin + images)):
        row, up = load_rows(q, own, HEAD_DIM), load_rows(grad, own_grad, HEAD_DIM)
        key, value = load_rows(pooled_k, key_at, HEAD_DIM), load_rows(pooled_v, value_at, HEAD_DIM)
        total, less = tl.load(lse + query * heads), tl.load(delta + query * heads)
        change = softmax_gradient(row, key, up, value, shift, total[:, None], less[:, None], PRECISION)[1]
        result += change
        grad += grad_batch
        q += q_batch
        pooled_k += pooled_k_batch
        pooled_v += pooled_v_batch
        lse += queries * heads
        delta += queries * heads
    d_pooled_bias += ((part * heads + head) * queries + first) * keys + key_tile * KEYS
    pointers = d_pooled_bias + ((query - first) * keys)[:, None] + tl.arange(0, KEYS)[None, :]
    tl.store(pointers, result.to(d_pooled_bias.dtype.element_ty), mask=inside[:, None] & present[None, :])
