"""Aggregated attention in Triton: forward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.aggregated_attention.tiles import (
    LN2,
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
    store_rows,
    window_launch,
)
from zoo.kernels.aggregated_attention.triton_backward import backward
from zoo.kernels.launch import launch

__all__ = ["backward", "forward"]


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
    _, height, width, heads, _ = q.shape
    keys = pooled_bias.shape[2]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:4], dtype=torch.float32, device=q.device)
    tensors = [as_rows(t) for t in (q, k, v, pooled_k, pooled_v)]
    extra = as_taps(extra)
    options, grid = window_launch(q, size, 2048)
    launch(
        _forward,
        grid,
        *tensors,
        local_bias.contiguous(),
        pooled_bias.contiguous(),
        extra,
        out,
        lse,
        *leading_strides(*tensors),
        *extra.stride()[:3],
        heads,
        height,
        width,
        keys,
        **options,
        KEYS=min(32, padded(keys)),
    )
    return out, lse


@triton.jit
def _forward(
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
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """A tile of queries of one head of one image: the pooled part, the logits of the window, then its values.

    The two parts keep maxima of their own until both are known, and their results meet in `join`: a plain sum lets the
    compiler carry the rows of the window, tap by tap, into the layout of the tensor cores.
    """
    batch, head, first, y, x = program(heads, height, width, ROWS, COLUMNS)
    index, inside = neighbor(y, x, height, width, 0, 0)
    queries = height * width
    q += batch * q_batch + head * HEAD_DIM
    k += batch * k_batch + head * HEAD_DIM
    v += batch * v_batch + head * HEAD_DIM
    pooled_k += batch * pooled_k_batch + head * HEAD_DIM
    pooled_v += batch * pooled_v_batch + head * HEAD_DIM
    extra += batch * extra_batch + head.to(tl.int64) * extra_head
    out += batch * queries * heads * HEAD_DIM + head * HEAD_DIM
    lse += batch * queries * heads + head
    row = load_rows(q, index, inside, q_row, HEAD_DIM, CHANNELS)

    pooled_top = tl.full([ROWS * COLUMNS], float("-inf"), tl.float32)
    pooled_total = tl.zeros([ROWS * COLUMNS], tl.float32)
    pooled = tl.zeros([ROWS * COLUMNS, CHANNELS], tl.float32)
    bias = bias_rows(pooled_bias, head, queries, keys, first, index)[:, None] + tl.arange(0, KEYS)[None, :]
    for start in range(0, keys, KEYS):
        number = start + tl.arange(0, KEYS)
        key = load_rows(pooled_k, number, number < keys, pooled_k_row, HEAD_DIM, CHANNELS)
        value = load_rows(pooled_v, number, number < keys, pooled_v_row, HEAD_DIM, CHANNELS)
        shift = tl.load(bias + start, mask=(number < keys)[None, :], other=float("-inf")).to(tl.float32)
        scores = tl.dot(row, tl.trans(key), shift, input_precision="ieee")
        higher = tl.maximum(pooled_top, tl.max(scores, 1))
        weights = tl.exp2((scores - higher[:, None]) * LOG2E)
        shrink = tl.exp2((pooled_top - higher) * LOG2E)
        pooled_total = pooled_total * shrink + tl.sum(weights, 1)
        pooled = tl.dot(weights.to(value.dtype), value, pooled * shrink[:, None], input_precision="ieee")
        pooled_top = higher

    logits = ()
    top = tl.full([ROWS * COLUMNS], float("-inf"), tl.float32)
    for tap in tl.static_range(SIZE * SIZE):
        near, seen = neighbor(y, x, height, width, tap // SIZE - SIZE // 2, tap % SIZE - SIZE // 2)
        near_key = load_rows(k, near, seen, k_row, HEAD_DIM, CHANNELS)
        logit = tl.sum(row.to(tl.float32) * near_key.to(tl.float32), 1)
        logit += tl.load(local_bias + head * SIZE * SIZE + tap).to(tl.float32)
        logit = tl.where(seen, logit, float("-inf"))
        logits += (logit,)
        top = tl.maximum(top, logit)

    top = tl.maximum(top, pooled_top)
    shrink = tl.exp2((pooled_top - top) * LOG2E)
    total = pooled_total * shrink
    for tap in tl.static_range(SIZE * SIZE):
        total += tl.exp2((logits[tap] - top) * LOG2E)
    share = 1.0 / total
    local = tl.zeros([ROWS * COLUMNS, CHANNELS], tl.float32)
    for tap in tl.static_range(SIZE * SIZE):
        near, seen = neighbor(y, x, height, width, tap // SIZE - SIZE // 2, tap % SIZE - SIZE // 2)
        near_value = load_rows(v, near, seen, v_row, HEAD_DIM, CHANNELS)
        weight = tl.exp2((logits[tap] - top) * LOG2E) * share + load_tap(extra, index, seen, extra_row, tap)
        local += weight[:, None] * near_value.to(tl.float32)
    result = tl.sum(tl.join(local, pooled * (shrink * share)[:, None]), 2)
    store_rows(out, index, inside, heads * HEAD_DIM, result, HEAD_DIM, CHANNELS)
    tl.store(lse + index * heads, top + tl.log2(total) * LN2, mask=inside)
