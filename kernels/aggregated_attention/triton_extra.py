"""Aggregated attention in Triton: the gradient of `extra`, and what the softmax subtracts from other gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch

POSITIONS = 128
"""Each thread has one with all its channels, so sums over channels need no other thread."""


def extra_gradient(
    extra: torch.Tensor, grad: torch.Tensor, v: torch.Tensor, out: torch.Tensor, strides: list[int], size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """delta, (B, H, W, heads) in float32, and the gradient of `extra`."""
    batch, height, width, heads, head_dim = v.shape
    delta = torch.empty(v.shape[:4], dtype=torch.float32, device=v.device)
    d_extra = torch.empty(extra.shape, dtype=extra.dtype, device=extra.device)
    options = {
        "HEAD_DIM": head_dim,
        "PIECE": 16 // v.element_size(),
        "SIZE": size,
        "TAPS": triton.next_power_of_2(size**2),
        "POSITIONS": POSITIONS,
        "num_warps": POSITIONS // 32,
        "num_stages": 1,
    }
    grid = (batch * triton.cdiv(height * width, POSITIONS) * heads,)
    launch(_extra, grid, extra, grad, v, out, delta, d_extra, *strides, heads, height, width, **options)
    return delta, d_extra


@triton.jit
def _piece(pointer, row, number, HEAD_DIM: tl.constexpr, PIECE: tl.constexpr):
    """The PIECE channels of rows that a thread reads at once, in float32.

    Widening a bfloat16 bitwise takes one instruction instead of two.
    """
    channel = number * PIECE + tl.arange(0, PIECE)
    pointers = pointer + row[:, None] + channel[None, :]
    if number * PIECE + PIECE <= HEAD_DIM:
        piece = tl.load(pointers)
    else:
        piece = tl.load(pointers, mask=(channel < HEAD_DIM)[None, :], other=0.0)
    if piece.dtype == tl.bfloat16:
        return (piece.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return piece.to(tl.float32)


@triton.jit
def _extra(
    extra, grad, v, out, delta, d_extra,
    extra_batch, extra_row, extra_head, grad_batch, grad_row, v_batch, v_row, heads, height, width,
    HEAD_DIM: tl.constexpr, PIECE: tl.constexpr, SIZE: tl.constexpr, TAPS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """grad[t] . v[u] in the windows of a run of positions, which is the gradient of `extra`, and delta.

    delta is what the softmax subtracts from the gradient of every weight: the sum of all weights times their gradients.
    `extra` is added after the softmax, so its part of grad . out is excluded from that sum.
    """
    queries = height * width
    tiles, program = tl.cdiv(queries, POSITIONS), tl.program_id(0)
    head, tile, image = program % heads, program // heads % tiles, (program // (heads * tiles)).to(tl.int64)
    index = tile * POSITIONS + tl.arange(0, POSITIONS)
    inside = index < queries
    index = tl.minimum(index, queries - 1)
    y, x = index // width, index % width
    one = image * queries * heads + head
    grad += image * grad_batch + head * HEAD_DIM
    v += image * v_batch + head * HEAD_DIM
    extra += image * extra_batch + head.to(tl.int64) * extra_head

    near, seen, products = (), (), ()
    for tap in tl.static_range(SIZE * SIZE):
        i, j = y + tap // SIZE - SIZE // 2, x + tap % SIZE - SIZE // 2
        there = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        seen += (there,)
        near += (tl.where(there, i * width + j, index) * v_row,)
        products += (tl.zeros([POSITIONS], tl.float32),)
    less = tl.zeros([POSITIONS], tl.float32)
    for number in tl.static_range((HEAD_DIM + PIECE - 1) // PIECE):
        up = _piece(grad, index * grad_row, number, HEAD_DIM, PIECE)
        less += tl.sum(up * _piece(out + one * HEAD_DIM, index * heads * HEAD_DIM, number, HEAD_DIM, PIECE), 1)
        sums = ()
        for tap in tl.static_range(SIZE * SIZE):
            sums += (products[tap] + tl.sum(up * _piece(v, near[tap], number, HEAD_DIM, PIECE), 1),)
        products = sums

    column = tl.arange(0, TAPS)[None, :]
    sheet = tl.zeros([POSITIONS, TAPS], tl.float32)
    for tap in tl.static_range(SIZE * SIZE):
        product = tl.where(seen[tap], products[tap], 0.0)
        less -= tl.load(extra + index * extra_row + tap, mask=seen[tap], other=0.0).to(tl.float32) * product
        sheet = tl.where(column == tap, product[:, None], sheet)
    tl.store(delta + one + index * heads, less, mask=inside)
    pointers = d_extra + one * (SIZE * SIZE) + (index * heads * (SIZE * SIZE))[:, None] + column
    tl.store(pointers, sheet.to(d_extra.dtype.element_ty), mask=inside[:, None] & (column < SIZE * SIZE))
