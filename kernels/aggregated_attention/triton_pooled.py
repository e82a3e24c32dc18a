"""Aggregated attention in Triton: gradients of the pooled keys and values and of their bias."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.aggregated_attention.tiles import (
    bias_rows,
    flat_options,
    leading_strides,
    load_rows,
    softmax_gradient,
    store_rows,
)
from zoo.kernels.launch import launch

PROGRAMS = 512
"""As many occupy a large GPU: a loop is split in parts until there are so many."""


def pooled_keys_gradients(q: torch.Tensor, pairs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The queries are split among programs, each of which writes a sum of its own."""
    batch, height, width, heads, head_dim = q.shape
    keys, options = pairs[4].shape[2], flat_options(q, pairs[4].shape[2], 32, 64)
    programs = batch * heads * triton.cdiv(keys, options["KEYS"])
    tiles = triton.cdiv(height * width, options["POSITIONS"])
    loop = max(min(tiles, 4), triton.cdiv(tiles * programs, PROGRAMS))
    parts = triton.cdiv(tiles, loop)
    dtype, shape = torch.float32 if parts > 1 else q.dtype, (parts, batch, keys, heads * head_dim)
    sums = [torch.empty(shape, dtype=dtype, device=q.device) for _ in range(2)]
    arguments = (*pairs, *sums, *leading_strides(*pairs[:4]), batch, heads, height * width, keys, loop, parts)
    launch(_pooled_keys, (programs * parts,), *arguments, **options)
    return [t[0] if parts == 1 else t.sum(0).to(q.dtype) for t in sums]


def pooled_bias_gradient(q: torch.Tensor, pairs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The batch is split among programs, each of which writes a sum of its own."""
    batch, height, width, heads, _ = q.shape
    keys, options = pairs[4].shape[2], flat_options(q, pairs[4].shape[2], 64, 32)
    tiles = triton.cdiv(height * width, options["POSITIONS"])
    programs = heads * tiles * triton.cdiv(keys, options["KEYS"])
    images = max(min(batch, 8), triton.cdiv(batch * programs, PROGRAMS))
    parts = triton.cdiv(batch, images) if batch else 1
    dtype = torch.float32 if parts > 1 else pairs[4].dtype
    sums = torch.empty(parts, *pairs[4].shape, dtype=dtype, device=q.device)
    arguments = (*pairs, sums, *leading_strides(*pairs[:4]), batch, heads, height * width, keys, images)
    launch(_pooled_bias, (programs * parts,), *arguments, **options)
    return sums[0] if parts == 1 else sums.sum(0).to(pairs[4].dtype)


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
    key = load_rows(pooled_k, number, present, pooled_k_row, HEAD_DIM, CHANNELS)
    value = load_rows(pooled_v, number, present, pooled_v_row, HEAD_DIM, CHANNELS)

    key_result = tl.zeros([KEYS, CHANNELS], tl.float32)
    value_result = tl.zeros([KEYS, CHANNELS], tl.float32)
    begin = part * loop * POSITIONS
    for first in range(begin, tl.minimum(queries, begin + loop * POSITIONS), POSITIONS):
        query = first + tl.arange(0, POSITIONS)
        inside = query < queries
        row = load_rows(q, query, inside, q_row, HEAD_DIM, CHANNELS)
        up = load_rows(grad, query, inside, grad_row, HEAD_DIM, CHANNELS)
        total = tl.load(lse + one + query * heads, mask=inside, other=float("inf"))
        less = tl.load(delta + one + query * heads, mask=inside, other=0.0)
        bias = bias_rows(pooled_bias + tile * KEYS, head, queries, keys, first, query)[None, :]
        bias += tl.arange(0, KEYS)[:, None]
        shift = tl.load(bias, mask=present[:, None], other=float("-inf")).to(tl.float32)
        weights, change = softmax_gradient(key, row, value, up, shift, total[None, :], less[None, :])
        key_result = tl.dot(change.to(row.dtype), row, key_result, input_precision="ieee")
        value_result = tl.dot(weights.to(up.dtype), up, value_result, input_precision="ieee")
    one = ((part * batches + batch) * keys * heads + head) * HEAD_DIM
    store_rows(d_pooled_k + one, number, present, heads * HEAD_DIM, key_result, HEAD_DIM, CHANNELS)
    store_rows(d_pooled_v + one, number, present, heads * HEAD_DIM, value_result, HEAD_DIM, CHANNELS)


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
):
    """The gradient of a tile of the pooled bias, from `images` of the batch."""
    index = tl.program_id(0)
    tiles, key_tiles = tl.cdiv(queries, POSITIONS), tl.cdiv(keys, KEYS)
    head, key_tile, tile = index % heads, index // heads % key_tiles, index // (heads * key_tiles)
    part, tile = (tile // tiles).to(tl.int64), tile % tiles
    first = tile * POSITIONS
    query, number = first + tl.arange(0, POSITIONS), key_tile * KEYS + tl.arange(0, KEYS)
    inside, present = query < queries, number < keys
    bias = bias_rows(pooled_bias + key_tile * KEYS, head, queries, keys, first, query)
    bias = bias[:, None] + tl.arange(0, KEYS)[None, :]
    shift = tl.load(bias, mask=present[None, :], other=float("-inf")).to(tl.float32)
    begin = part * images
    grad += begin * grad_batch + head * HEAD_DIM
    q += begin * q_batch + head * HEAD_DIM
    pooled_k += begin * pooled_k_batch + head * HEAD_DIM
    pooled_v += begin * pooled_v_batch + head * HEAD_DIM
    lse += begin * queries * heads + head
    delta += begin * queries * heads + head

    result = tl.zeros([POSITIONS, KEYS], tl.float32)
    for _image in range(begin, tl.minimum(batches, begin + images)):
        row = load_rows(q, query, inside, q_row, HEAD_DIM, CHANNELS)
        up = load_rows(grad, query, inside, grad_row, HEAD_DIM, CHANNELS)
        key = load_rows(pooled_k, number, present, pooled_k_row, HEAD_DIM, CHANNELS)
        value = load_rows(pooled_v, number, present, pooled_v_row, HEAD_DIM, CHANNELS)
        total = tl.load(lse + query * heads, mask=inside, other=float("inf"))
        less = tl.load(delta + query * heads, mask=inside, other=0.0)
        change = softmax_gradient(row, key, up, value, shift, total[:, None], less[:, None])[1]
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
