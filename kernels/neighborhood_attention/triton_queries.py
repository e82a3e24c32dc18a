"""Gradient of the queries of neighborhood attention on a GPU, and sums of gradients of logits; see README.md."""

from __future__ import annotations

import triton
import triton.language as tl

from zoo.kernels.neighborhood_attention.triton_lattice import (
    LOG2E,
    box_of,
    box_steps,
    locate,
    read,
    stretch_of,
    tile_ranks,
    write,
    write_sums,
)
from zoo.kernels.neighborhood_attention.triton_pairs import block_of_pairs

PER_SM = 5
"""Programs of `_queries` that run on a multiprocessor at once."""


@triton.jit(do_not_specialize=["batch", "share"])
def _queries(
    grad, q, k, v, bias, table, out, lse, row_sums, dq, partial, scale, signed_scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, batch, share,
    height, width, heads, dilation_y, dilation_x, down, kinds_y, kinds_x, row_of_kinds, run, stretch,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, KEYS: tl.constexpr,
    BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of tiles of queries, and the row sums needed for the gradients of keys and values.

    With a bias also the gradients of the logits, summed over the images and tiles of a program, (32, box).
    """
    ROWS: tl.constexpr = TILE_Y * TILE_X
    head, image, group, members_y, members_x, first_y, first_x, tiles, kind = stretch_of(
        tl.program_id(0), height, width, heads, dilation_y, dilation_x, down, kinds_y, kinds_x, row_of_kinds,
        run, stretch, SIZE_Y, SIZE_X, TILE_Y, TILE_X, KEYS,
    )  # fmt: skip
    image *= share
    y, x, inside = tile_ranks(first_y, first_x, members_y, members_x, TILE_Y, TILE_X)
    start_y, rows = box_of(first_y, members_y, SIZE_Y, TILE_Y, KEYS)
    start_x, columns = box_of(first_x, members_x, SIZE_X, TILE_X, KEYS)
    q += UNIT * locate(image, group, first_y, first_x, head, q_b, q_y, q_x, q_h)
    of_k = UNIT * locate(image, group, start_y, start_x, head, k_b, k_y, k_x, k_h)
    k += of_k
    v += of_k
    rows_b, rows_y = height * width * heads, width * heads
    first_row = locate(image, group, first_y, first_x, head, rows_b, rows_y, heads, 1)
    grad += first_row * D
    out += first_row * D
    dq += first_row * D
    lse += first_row
    row_sums += first_row
    down_y, down_x = (y - first_y) * dilation_y, (x - first_x) * dilation_x
    own, row = down_y * q_y + down_x * q_x, down_y * rows_y + down_x * heads
    box = (start_y, start_x, rows, columns)
    if table is not None:
        table += ((kind * heads + head) if bias is not None else kind).to(tl.int64) * (BLOCKS * CHUNKS * 512)

    SUMS: tl.constexpr = bias is not None
    KEPT: tl.constexpr = SUMS and CHUNKS == 1
    if SUMS:
        place = tl.arange(0, ROWS)[:, None] * (BLOCKS * CHUNKS * 16) + tl.arange(0, 16)[None, :]
        partial += tl.program_id(0).to(tl.int64) * (ROWS * BLOCKS * CHUNKS * 16)
    sums = ()
    one = tl.where(tl.arange(0, 16)[:, None] == tl.arange(0, 16)[None, :], 1.0, 0.0).to(k.dtype.element_ty)
    for _block in tl.static_range(BLOCKS if KEPT else 0):
        sums += (tl.zeros([ROWS, 16], tl.float32),)
    for tile in range(0, tiles):
        right = tile * TILE_X * dilation_x
        for step in range(0, tl.minimum(share, batch - image)):
            queries = read(q, own + (step * q_b + right * q_x), UNIT, D, BLOCK_D)
            at_row = row + (step * rows_b + right * heads)
            grads = read(grad, at_row, D, D, BLOCK_D)
            outs = read(out, at_row, D, D, BLOCK_D)
            total = tl.load(lse + at_row) * LOG2E
            delta = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
            write_sums(row_sums + at_row, total, delta, inside)
            sum_q = tl.zeros([ROWS, BLOCK_D], tl.float32)
            for chunk in range(0, CHUNKS):
                added = ()
                for block in tl.static_range(BLOCKS):
                    index = chunk * BLOCKS + block
                    key_y, key_x, _ = box_steps(index * 16, rows, columns, 16)
                    at = (key_y * (dilation_y * k_y) + key_x * (dilation_x * k_x)) + (step * k_b + right * k_x)
                    pairs = block_of_pairs(
                        table, index, bias, head, scale, box, first_y, first_x, members_y, members_x,
                        SIZE_Y, SIZE_X, TILE_Y, TILE_X, KEYS,
                    )  # fmt: skip
                    keys = read(k, at, UNIT, D, BLOCK_D)
                    values = read(v, at, UNIT, D, BLOCK_D)
                    logits = tl.dot(queries, tl.trans(keys), pairs, input_precision=PRECISION)
                    dweights = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
                    weights = tl.exp2(logits * (scale * LOG2E) - total[:, None])
                    dlogits = weights * (dweights - delta[:, None])
                    sum_q = tl.dot(dlogits.to(keys.dtype), keys, sum_q, input_precision=PRECISION)
                    if KEPT:
                        rounded = dlogits.to(keys.dtype)
                        added += (tl.dot(rounded, one, sums[block], input_precision=PRECISION),)
                    elif SUMS:
                        at = partial + place + index * 16
                        tl.store(at, tl.load(at, mask=tile + step > 0, other=0.0) + dlogits)
                if KEPT:
                    sums = added
            if SUMS and not KEPT:
                tl.debug_barrier()  # other threads may read these sums next
            write(dq, at_row, sum_q * signed_scale, inside, D, BLOCK_D)
    for block in tl.static_range(BLOCKS if KEPT else 0):
        tl.store(partial + place + block * 16, sums[block])
