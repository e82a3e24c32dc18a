"""Gradient of the position biases of neighborhood attention on a GPU, without atomic additions; see README.md."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.neighborhood_attention.triton_lattice import (
    FAR,
    LOG2E,
    PROGRAMS,
    ROWS,
    Layout,
    keys_of,
    locate,
    pair_table,
    read,
    sees,
    tile,
    tile_ranks,
    window_start,
)


def bias_gradient(
    plan: Layout,
    q: torch.Tensor,
    bias: torch.Tensor,
    arguments: tuple,
    numbers: list[int],
    options: dict[str, int],
    size: list[int],
) -> torch.Tensor:
    """The gradient of `bias`; arguments, numbers and options are those of the other kernels of the backward pass."""
    tile_y, tile_x = options["TILE_Y"], options["TILE_X"]
    block = 16 if q.dtype == torch.float32 or q.shape[-1] > 64 else 32
    box_x = tile_x + 2 * (size[1] - 1)
    blocks = triton.cdiv((tile_y + 2 * (size[0] - 1)) * box_x, block)
    items, heads = plan.tiles * q.shape[0], q.shape[3]
    one = 4 * heads * ROWS * blocks * block
    most = max(1, 3 * q.numel() * q.element_size() // one)  # the sums take no more memory than q, k and v
    parts = min(items, most, triton.cdiv(PROGRAMS, heads * blocks))
    sums = q.new_empty(parts, heads, ROWS, blocks * block, dtype=torch.float32)
    *tensors, scale = arguments
    grid = (parts * blocks * heads,)
    launch(_pairs, grid, *tensors, sums, scale, items, parts, *numbers, **options, BLOCK=block)
    return _by_difference(sums.sum(0), tile_x, box_x, size).to(bias.dtype)


def _by_difference(pairs: torch.Tensor, tile_x: int, box_x: int, size: list[int]) -> torch.Tensor:
    """Sums of pairs, (heads, queries of a tile, keys of the box around it), by key - query: (heads, 2h - 1, 2w - 1).

    A step of the query moves the first key that it can see by the same step, so a view lines them up.
    """
    heads, queries, keys = pairs.shape
    shape = (heads, queries // tile_x, tile_x, 2 * size[0] - 1, 2 * size[1] - 1)
    return pairs.as_strided(shape, (queries * keys, tile_x * keys + box_x, keys + 1, box_x, 1)).sum((1, 2))


@triton.jit(do_not_specialize=["batch", "share", "items", "parts"])
def _pairs(
    grad, q, k, v, bias, lse, delta, partial, scale, items, parts,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h,
    batch, share, height, width, heads, dilation_y, dilation_x, down, across,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of logits, summed over tiles of all images: by query of the tile and key of one block around it.

    Counted from a tile's first position, its queries see keys from -(SIZE - 1) to TILE + SIZE - 2, borders included.
    """
    BOX_Y: tl.constexpr = TILE_Y + 2 * (SIZE_Y - 1)
    BOX_X: tl.constexpr = TILE_X + 2 * (SIZE_X - 1)
    BLOCKS: tl.constexpr = (BOX_Y * BOX_X + BLOCK - 1) // BLOCK
    head = tl.program_id(0) % heads
    block = tl.program_id(0) // heads % BLOCKS
    part = tl.program_id(0) // heads // BLOCKS
    index = block * BLOCK + tl.arange(0, BLOCK)
    ahead_y, ahead_x = index // BOX_X - (SIZE_Y - 1), index % BOX_X - (SIZE_X - 1)
    own = tl.arange(0, TILE_Y * TILE_X)
    own_y, own_x = own // TILE_X, own % TILE_X
    possible = sees(
        ahead_y[None, :], ahead_x[None, :], own_y[:, None] - (SIZE_Y - 1), own_x[:, None] - (SIZE_X - 1),
        2 * SIZE_Y - 1, 2 * SIZE_X - 1,
    )  # fmt: skip
    table = pair_table(
        bias, head, scale, ahead_y[None, :], ahead_x[None, :], own_y[:, None], own_x[:, None], possible,
        SIZE_Y, SIZE_X,
    )  # fmt: skip
    sums = tl.zeros([TILE_Y * TILE_X, BLOCK], tl.float32)
    for item in range(part, items, parts):
        image, group, members_y, members_x, first_y, first_x = tile(
            item, height, width, dilation_y, dilation_x, down, across, TILE_Y, TILE_X
        )
        start_y, rows = keys_of(first_y, members_y, SIZE_Y, TILE_Y)
        above = first_y + block * BLOCK // BOX_X - (SIZE_Y - 1)
        below = first_y + (block * BLOCK + BLOCK - 1) // BOX_X - (SIZE_Y - 1)
        if (above < start_y + rows) & (below >= start_y):
            y, x, inside = tile_ranks(first_y, first_x, members_y, members_x, TILE_Y, TILE_X)
            down_y, down_x = (y - first_y) * dilation_y, (x - first_x) * dilation_x
            rows_b, rows_y = height * width * heads, width * heads
            first_row = locate(image, group, first_y, first_x, head, rows_b, rows_y, heads, 1)
            row = down_y * rows_y + down_x * heads
            of_q = UNIT * locate(image, group, first_y, first_x, head, q_b, q_y, q_x, q_h)
            queries = read(q + of_q, down_y * q_y + down_x * q_x, UNIT, D, BLOCK_D)
            grads = read(grad + first_row * D, row, D, D, BLOCK_D)
            total = tl.load(lse + first_row + row) * LOG2E
            own_delta = tl.load(delta + first_row + row)
            from_y = tl.where(inside, window_start(y, members_y, SIZE_Y), FAR)[:, None]
            from_x = window_start(x, members_x, SIZE_X)[:, None]

            start_x, columns = keys_of(first_x, members_x, SIZE_X, TILE_X)
            key_y, key_x = first_y + ahead_y, first_x + ahead_x
            seen = sees(key_y[None, :], key_x[None, :], from_y, from_x, SIZE_Y, SIZE_X)
            key_y = tl.minimum(tl.maximum(key_y, start_y), start_y + rows - 1) - first_y
            key_x = tl.minimum(tl.maximum(key_x, start_x), start_x + columns - 1) - first_x
            at = key_y * dilation_y * k_y + key_x * dilation_x * k_x
            of_k = UNIT * locate(image, group, first_y, first_x, head, k_b, k_y, k_x, k_h)
            keys = read(k + of_k, at, UNIT, D, BLOCK_D)
            values = read(v + of_k, at, UNIT, D, BLOCK_D)
            logits = tl.dot(queries, tl.trans(keys), table, input_precision="ieee")
            dweights = tl.dot(grads, tl.trans(values), input_precision="ieee")
            weights = tl.exp2(logits * (scale * LOG2E) - total[:, None])
            sums += tl.where(seen, weights * (dweights - own_delta[:, None]), 0.0)
    partial += (part * heads + head).to(tl.int64) * (TILE_Y * TILE_X) * (BLOCKS * BLOCK)
    tl.store(partial + own[:, None] * (BLOCKS * BLOCK) + index[None, :], sums)
