"""Gradients of the keys and values of neighborhood attention on a GPU; see README.md."""

from __future__ import annotations

import triton
import triton.language as tl

from zoo.kernels.neighborhood_attention.triton_lattice import (
    LOG2E,
    box_of,
    box_steps,
    locate,
    read,
    read_sums,
    stretch_of,
    tile_ranks,
    write,
)
from zoo.kernels.neighborhood_attention.triton_pairs import block_of_pairs

PER_SM = 5
"""Programs of `_keys_values` that run on a multiprocessor at once."""


@triton.jit(do_not_specialize=["batch", "share"])
def _keys_values(
    grad, q, k, v, bias, table, row_sums, dk, dv, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, batch, share,
    height, width, heads, dilation_y, dilation_x, down, kinds_y, kinds_x, row_of_kinds, run, stretch,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, KEYS: tl.constexpr,
    BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of tiles of keys and values, from the boxes of queries that see them."""
    ROWS: tl.constexpr = TILE_Y * TILE_X
    head, image, group, members_y, members_x, first_y, first_x, tiles, kind = stretch_of(
        tl.program_id(0), height, width, heads, dilation_y, dilation_x, down, kinds_y, kinds_x, row_of_kinds,
        run, stretch, SIZE_Y, SIZE_X, TILE_Y, TILE_X, KEYS,
    )  # fmt: skip
    image *= share
    y, x, inside = tile_ranks(first_y, first_x, members_y, members_x, TILE_Y, TILE_X)
    start_y, rows = box_of(first_y, members_y, SIZE_Y, TILE_Y, KEYS)
    start_x, columns = box_of(first_x, members_x, SIZE_X, TILE_X, KEYS)
    of_k = UNIT * locate(image, group, first_y, first_x, head, k_b, k_y, k_x, k_h)
    k += of_k
    v += of_k
    q += UNIT * locate(image, group, start_y, start_x, head, q_b, q_y, q_x, q_h)
    rows_b, rows_y = height * width * heads, width * heads
    start_row = locate(image, group, start_y, start_x, head, rows_b, rows_y, heads, 1)
    grad += start_row * D
    row_sums += start_row
    first_row = locate(image, group, first_y, first_x, head, rows_b, rows_y, heads, 1)
    dk += first_row * D
    dv += first_row * D
    down_y, down_x = (y - first_y) * dilation_y, (x - first_x) * dilation_x
    own, own_row = down_y * k_y + down_x * k_x, down_y * rows_y + down_x * heads
    box = (start_y, start_x, rows, columns)
    if table is not None:
        table += ((kind * heads + head) if bias is not None else kind).to(tl.int64) * (BLOCKS * CHUNKS * 512)

    for tile in range(0, tiles):
        right = tile * TILE_X * dilation_x
        for step in range(0, tl.minimum(share, batch - image)):
            at_key = own + (step * k_b + right * k_x)
            keys = read(k, at_key, UNIT, D, BLOCK_D)
            values = read(v, at_key, UNIT, D, BLOCK_D)
            sum_k = tl.zeros([ROWS, BLOCK_D], tl.float32)
            sum_v = tl.zeros([ROWS, BLOCK_D], tl.float32)
            for chunk in range(0, CHUNKS):
                for block in tl.static_range(BLOCKS):
                    index = chunk * BLOCKS + block
                    query_y, query_x, _ = box_steps(index * 16, rows, columns, 16)
                    query_y, query_x = query_y * dilation_y, query_x * dilation_x
                    at = (query_y * q_y + query_x * q_x) + (step * q_b + right * q_x)
                    row = (query_y * rows_y + query_x * heads) + (step * rows_b + right * heads)
                    pairs = block_of_pairs(
                        table, index, bias, head, scale, box, first_y, first_x, members_y, members_x,
                        SIZE_Y, SIZE_X, TILE_Y, TILE_X, KEYS,
                    )  # fmt: skip
                    queries = read(q, at, UNIT, D, BLOCK_D)
                    grads = read(grad, row, D, D, BLOCK_D)
                    total, deltas = read_sums(row_sums + row)
                    logits = tl.dot(keys, tl.trans(queries), pairs, input_precision=PRECISION)
                    dweights = tl.dot(values, tl.trans(grads), input_precision=PRECISION)
                    weights = tl.exp2(logits * (scale * LOG2E) - total[None, :])
                    dlogits = weights * (dweights - deltas[None, :])
                    sum_v = tl.dot(weights.to(grads.dtype), grads, sum_v, input_precision=PRECISION)
                    sum_k = tl.dot(dlogits.to(queries.dtype), queries, sum_k, input_precision=PRECISION)
            at = own_row + (step * rows_b + right * heads)
            write(dk, at, sum_k * scale, inside, D, BLOCK_D)
            write(dv, at, sum_v, inside, D, BLOCK_D)
