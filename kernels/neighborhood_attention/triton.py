"""Neighborhood attention on a GPU: no copies of keys, no table of pairs; see README.md."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.neighborhood_attention.triton_backward import backward
from zoo.kernels.neighborhood_attention.triton_lattice import (
    LOG2E,
    box_of,
    box_steps,
    locate,
    read,
    stretch_of,
    tile_ranks,
    write,
)
from zoo.kernels.neighborhood_attention.triton_pairs import block_of_pairs, pair_table
from zoo.kernels.neighborhood_attention.triton_plan import FORWARD, plan_of, positive, readable

__all__ = ["backward", "forward"]

PER_SM = 7
"""Programs of `_forward` that run on a multiprocessor at once."""


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    size: list[int],
    dilation: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `biased_operator`."""
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:4], dtype=torch.float32)
    q, scale = positive(q, scale)
    (q,), (k, v) = readable(q), readable(k, v)
    bias = None if bias is None else bias.contiguous()
    plan = plan_of(FORWARD, PER_SM, q, k, bias is not None, size, dilation)
    table = pair_table(plan, q, bias, scale)
    launch(_forward, plan.grid, q, k, v, bias, table, out, lse, scale, *plan.numbers, **plan.options)
    return out, lse


@triton.jit(do_not_specialize=["batch", "share"])
def _forward(
    q, k, v, bias, table, out, lse, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, batch, share,
    height, width, heads, dilation_y, dilation_x, down, kinds_y, kinds_x, row_of_kinds, run, stretch,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, KEYS: tl.constexpr,
    BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = TILE_Y * TILE_X
    PARTS: tl.constexpr = (BLOCKS + 4) // 5
    HELD: tl.constexpr = (BLOCKS + PARTS - 1) // PARTS
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
    out += first_row * D
    lse += first_row
    down_y, down_x = (y - first_y) * dilation_y, (x - first_x) * dilation_x
    own, row = down_y * q_y + down_x * q_x, down_y * rows_y + down_x * heads
    box = (start_y, start_x, rows, columns)
    if table is not None:
        table += ((kind * heads + head) if bias is not None else kind).to(tl.int64) * (BLOCKS * CHUNKS * 512)

    for tile in range(0, tiles):
        right = tile * TILE_X * dilation_x
        for step in range(0, tl.minimum(share, batch - image)):
            queries = read(q, own + (step * q_b + right * q_x), UNIT, D, BLOCK_D)
            largest = tl.full([ROWS], -1e30, tl.float32)  # finite: a chunk may hold no key of a query
            total = tl.zeros([ROWS], tl.float32)
            mean = tl.zeros([ROWS, BLOCK_D], tl.float32)
            for chunk in range(0, CHUNKS):
                for part in tl.static_range(0, BLOCKS, HELD):
                    logits, rows_of_k = (), ()
                    for block in tl.static_range(part, part + HELD if part + HELD < BLOCKS else BLOCKS):
                        index = chunk * BLOCKS + block
                        key_y, key_x, _ = box_steps(index * 16, rows, columns, 16)
                        at = (key_y * (dilation_y * k_y) + key_x * (dilation_x * k_x)) + (step * k_b + right * k_x)
                        pairs = block_of_pairs(
                            table, index, bias, head, scale, box, first_y, first_x, members_y, members_x,
                            SIZE_Y, SIZE_X, TILE_Y, TILE_X, KEYS,
                        )  # fmt: skip
                        keys = read(k, at, UNIT, D, BLOCK_D)
                        logits += (tl.dot(queries, tl.trans(keys), pairs, input_precision=PRECISION),)
                        rows_of_k += (at,)
                    best = logits[0]
                    for block in tl.static_range(1, len(logits)):
                        best = tl.maximum(best, logits[block])
                    before, largest = largest, tl.maximum(largest, tl.max(best, 1))
                    shrink = tl.exp2((before - largest) * (scale * LOG2E))
                    sums = tl.zeros([ROWS, 16], tl.float32)
                    mean *= shrink[:, None]
                    for block in tl.static_range(len(logits)):
                        weights = tl.exp2(logits[block] * (scale * LOG2E) - (largest * (scale * LOG2E))[:, None])
                        sums += weights
                        values = read(v, rows_of_k[block], UNIT, D, BLOCK_D)
                        mean = tl.dot(weights.to(values.dtype), values, mean, input_precision=PRECISION)
                    total = total * shrink + tl.sum(sums, 1)
            at = row + (step * rows_b + right * heads)
            write(out, at, mean * (1.0 / total)[:, None], inside, D, BLOCK_D)
            tl.store(lse + at, largest * scale + tl.log2(total) / LOG2E, mask=inside)
