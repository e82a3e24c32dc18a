"""Gradients of neighborhood attention on a GPU: each sum in one fixed order; see README.md."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.neighborhood_attention.triton_bias import bias_gradient
from zoo.kernels.neighborhood_attention.triton_lattice import (
    FAR,
    LOG2E,
    box_steps,
    key_block,
    keys_of,
    layout,
    locate,
    pair_table,
    positive,
    queries_of,
    read,
    readable,
    sees,
    strides_of,
    tile,
    tile_ranks,
    window_start,
    write,
)


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    size: list[int],
    dilation: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `biased_operator`."""
    dq, dk, dv = (q.new_empty(q.shape) for _ in range(3))
    delta = torch.empty_like(lse)
    sign = -1 if scale < 0 else 1
    q, scale = positive(q, scale)
    (grad, out), (q,), (k, v) = (grad.contiguous(), out.contiguous()), readable(q), readable(k, v)
    table = None if bias is None else bias.contiguous()
    plan = layout(q, k, size, dilation)
    unit, *numbers = *strides_of(q, k), *plan.integers
    inputs = (grad, q, k, v, table)
    options = plan.options | {"UNIT": unit}
    launch(_queries, plan.grid, *inputs, out, lse, delta, dq, scale, sign * scale, *numbers, **options, **plan.keys)
    for blocks in plan.queries:
        launch(_keys_values, plan.grid, *inputs, lse, delta, dk, dv, scale, *numbers, **options, **blocks)
    if table is None:
        return dq, dk, dv, q.new_empty(0)
    return dq, dk, dv, bias_gradient(plan, q, table, (*inputs, lse, delta, scale), numbers, options, size)


@triton.jit
def _to_queries(queries, grads, keys, values, table, scale, total, delta, sums, dlogits):
    """The part of a block of keys in the gradient of queries.

    Adding zero times the gradients of the block before keeps a compiler from starting all blocks at once, for which
    there are not enough registers.
    """
    logits = tl.dot(queries, tl.trans(keys), table + dlogits * 0.0, input_precision="ieee")
    dweights = tl.dot(grads, tl.trans(values), dlogits * 0.0 - delta[:, None], input_precision="ieee")
    dlogits = tl.exp2(logits * (scale * LOG2E) - total[:, None]) * dweights
    return tl.dot(dlogits.to(keys.dtype), keys, sums, input_precision="ieee"), dlogits


@triton.jit(do_not_specialize=["batch", "share"])
def _queries(
    grad, q, k, v, bias, out, lse, delta, dq, scale, signed_scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h,
    batch, share, height, width, heads, dilation_y, dilation_x, down, across,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries; `delta`, the sum of grad * out, for the other kernels."""
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
    own, row = down_y * q_y + down_x * q_x, (down_y * width + down_x) * heads
    box = (start_y, start_x, rows, columns)
    strides = (dilation_y * k_y, dilation_x * k_x)

    kept = ()
    for block in tl.static_range(BLOCKS):
        new = key_block(block * BLOCK, y, x, from_y, from_x, box, strides, bias, head, scale, SIZE_Y, SIZE_X, BLOCK)
        kept += (new,)
    for step in range(0, tl.minimum(share, batch - image)):
        at_row = row + step * rows_b
        queries = read(q, own + step * q_b, UNIT, D, BLOCK_D)
        grads = read(grad + first_row * D, at_row, D, D, BLOCK_D)
        outs = read(out + first_row * D, at_row, D, D, BLOCK_D)
        own_delta = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
        tl.store(delta + first_row + at_row, own_delta, mask=inside)
        total = tl.load(lse + first_row + at_row) * LOG2E
        sums = tl.zeros([TILE_Y * TILE_X, BLOCK_D], tl.float32)
        dlogits = tl.zeros([TILE_Y * TILE_X, BLOCK], tl.float32)
        for block in tl.static_range(BLOCKS):
            at, table = kept[block]
            keys = read(k, at + step * k_b, UNIT, D, BLOCK_D)
            values = read(v, at + step * k_b, UNIT, D, BLOCK_D)
            sums, dlogits = _to_queries(queries, grads, keys, values, table, scale, total, own_delta, sums, dlogits)
        if BLOCKS == 0:
            for begin in range(0, rows * columns, BLOCK):
                at, table = key_block(
                    begin, y, x, from_y, from_x, box, strides, bias, head, scale, SIZE_Y, SIZE_X, BLOCK
                )
                keys = read(k, at + step * k_b, UNIT, D, BLOCK_D)
                values = read(v, at + step * k_b, UNIT, D, BLOCK_D)
                sums, dlogits = _to_queries(queries, grads, keys, values, table, scale, total, own_delta, sums, dlogits)
        write(dq + first_row * D, at_row, sums * signed_scale, inside, D, BLOCK_D)


@triton.jit
def _query_block(
    begin, y, x, members_y, members_x, box, strides, bias, head, scale,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of queries: where they and their results lie in the box, and what logits (keys, queries) start from."""
    start_y, start_x, rows, columns = box
    stride_y, stride_x, row_y, row_x = strides
    query_y, query_x, there = box_steps(begin, rows, columns, BLOCK)
    at, row = query_y * stride_y + query_x * stride_x, query_y * row_y + query_x * row_x
    query_y, query_x = start_y + query_y, start_x + query_x
    from_y = tl.where(there, window_start(query_y, members_y, SIZE_Y), FAR)[None, :]
    from_x = window_start(query_x, members_x, SIZE_X)[None, :]
    y, x, query_y, query_x = y[:, None], x[:, None], query_y[None, :], query_x[None, :]
    seen = sees(y, x, from_y, from_x, SIZE_Y, SIZE_X)
    return at, row, pair_table(bias, head, scale, y, x, query_y, query_x, seen, SIZE_Y, SIZE_X)


@triton.jit
def _to_keys_values(keys, values, queries, grads, table, scale, total, delta, sum_k, sum_v, dlogits):
    """The part of a block of queries in the gradients of keys and values; see `_to_queries`."""
    logits = tl.dot(keys, tl.trans(queries), table + dlogits * 0.0, input_precision="ieee")
    weights = tl.exp2(logits * (scale * LOG2E) - total[None, :])
    sum_v = tl.dot(weights.to(grads.dtype), grads, sum_v, input_precision="ieee")
    dweights = tl.dot(values, tl.trans(grads), dlogits * 0.0, input_precision="ieee")
    dlogits = weights * (dweights - delta[None, :])
    return tl.dot(dlogits.to(queries.dtype), queries, sum_k, input_precision="ieee"), sum_v, dlogits


@triton.jit(do_not_specialize=["batch", "share"])
def _keys_values(
    grad, q, k, v, bias, lse, delta, dk, dv, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h,
    batch, share, height, width, heads, dilation_y, dilation_x, down, across,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, LEAST: tl.constexpr,
    UNIT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values: all as in `_queries`, seen from the keys.

    Of tiles that LEAST positions or more see; with a fixed number of blocks, of tiles that are visited by no more.
    """
    head = tl.program_id(0) % heads
    item = tl.program_id(0) // heads
    image, group, members_y, members_x, first_y, first_x = tile(
        item, height, width, dilation_y, dilation_x, down, across, TILE_Y, TILE_X
    )
    y, x, inside = tile_ranks(first_y, first_x, members_y, members_x, TILE_Y, TILE_X)
    start_y, rows = queries_of(first_y, members_y, SIZE_Y, TILE_Y)
    start_x, columns = queries_of(first_x, members_x, SIZE_X, TILE_X)
    image *= share
    k += UNIT * locate(image, group, first_y, first_x, head, k_b, k_y, k_x, k_h)
    v += UNIT * locate(image, group, first_y, first_x, head, k_b, k_y, k_x, k_h)
    q += UNIT * locate(image, group, start_y, start_x, head, q_b, q_y, q_x, q_h)
    rows_b, rows_y = height * width * heads, width * heads
    start_row = locate(image, group, start_y, start_x, head, rows_b, rows_y, heads, 1)
    first_row = locate(image, group, first_y, first_x, head, rows_b, rows_y, heads, 1)
    down_y, down_x = (y - first_y) * dilation_y, (x - first_x) * dilation_x
    own, own_row = down_y * k_y + down_x * k_x, (down_y * width + down_x) * heads
    box = (start_y, start_x, rows, columns)
    strides = (dilation_y * q_y, dilation_x * q_x, dilation_y * rows_y, dilation_x * heads)

    kept = ()
    for block in tl.static_range(BLOCKS):
        new = _query_block(
            block * BLOCK, y, x, members_y, members_x, box, strides, bias, head, scale, SIZE_Y, SIZE_X, BLOCK
        )
        kept += (new,)
    steps = tl.minimum(share, batch - image)
    if LEAST > 0:
        steps = tl.where(rows * columns < LEAST, 0, steps)
    if BLOCKS > 0:
        steps = tl.where(rows * columns > BLOCKS * BLOCK, 0, steps)
    for step in range(0, steps):
        keys = read(k, own + step * k_b, UNIT, D, BLOCK_D)
        values = read(v, own + step * k_b, UNIT, D, BLOCK_D)
        sum_k = tl.zeros([TILE_Y * TILE_X, BLOCK_D], tl.float32)
        sum_v = tl.zeros([TILE_Y * TILE_X, BLOCK_D], tl.float32)
        dlogits = tl.zeros([TILE_Y * TILE_X, BLOCK], tl.float32)
        for block in tl.static_range(BLOCKS):
            at, row, table = kept[block]
            queries = read(q, at + step * q_b, UNIT, D, BLOCK_D)
            grads = read(grad + start_row * D, row + step * rows_b, D, D, BLOCK_D)
            total = tl.load(lse + start_row + row + step * rows_b) * LOG2E
            deltas = tl.load(delta + start_row + row + step * rows_b)
            sum_k, sum_v, dlogits = _to_keys_values(
                keys, values, queries, grads, table, scale, total, deltas, sum_k, sum_v, dlogits
            )
        if BLOCKS == 0:
            for begin in range(0, rows * columns, BLOCK):
                at, row, table = _query_block(
                    begin, y, x, members_y, members_x, box, strides, bias, head, scale, SIZE_Y, SIZE_X, BLOCK
                )
                queries = read(q, at + step * q_b, UNIT, D, BLOCK_D)
                grads = read(grad + start_row * D, row + step * rows_b, D, D, BLOCK_D)
                total = tl.load(lse + start_row + row + step * rows_b) * LOG2E
                deltas = tl.load(delta + start_row + row + step * rows_b)
                sum_k, sum_v, dlogits = _to_keys_values(
                    keys, values, queries, grads, table, scale, total, deltas, sum_k, sum_v, dlogits
                )
        at_row = own_row + step * rows_b
        write(dk + first_row * D, at_row, sum_k * scale, inside, D, BLOCK_D)
        write(dv + first_row * D, at_row, sum_v, inside, D, BLOCK_D)
