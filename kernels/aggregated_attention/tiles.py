"""Shared by the forward and backward kernels: tiles of positions and the boxes around them, memory, launches.

A tile is a rectangle of TILE_Y x TILE_X positions of one head. Its windows fill a box, which is processed in blocks of
BLOCK positions, counted row by row. Pairs of a tile and a block that are in no window are masked.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import input_precision, multiprocessors

TILE = (4, 8)
"""Their windows of 3 x 3 positions fill a box of 60, just below the 64 of a block."""
TILE_Y, TILE_X = (tl.constexpr(length) for length in TILE)
POSITIONS = tl.constexpr(TILE[0] * TILE[1])
PROLOGUE = 3
"""The code before a program's loop takes as long as this number of images."""
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


def as_rows(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """(B, H, W, heads, ...) with its strides from image to image and from position to position.

    It is copied only if positions are unevenly spaced, or the channels of all heads are not contiguous.
    """
    _, height, width, heads, channels = x.shape
    image, down, across, head, channel = x.stride()
    row = across if width > 1 else down
    even = (height == 1 or down == row * width) and (channels == 1 or channel == 1)
    if even and (heads == 1 or head == channels):
        return x, image, row
    return x.contiguous(), height * width * heads * channels, heads * channels


def as_taps(extra: torch.Tensor) -> tuple[torch.Tensor, int, int, int]:
    """`as_rows` for `extra`, and its stride from head to head, which may be any."""
    rows, image, row = as_rows(extra[..., :1, :])
    if rows.data_ptr() == extra.data_ptr():
        return extra, image, row, extra.stride(3)
    return as_taps(extra.contiguous())


def layout(extra: torch.Tensor, *tensors: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
    """The arguments as kernels read them, `extra` first, and their strides."""
    taps, image, row, head = as_taps(extra)
    others = [as_rows(t) for t in tensors]
    strides = [image, row, head, *(stride for _, *steps in others for stride in steps)]
    return [taps, *(rows for rows, _, _ in others)], strides


def tiled(
    q: torch.Tensor, keys: int, size: int, resident: int, block: int
) -> tuple[tuple[int], tuple[int, ...], dict[str, int]]:
    """Grid, integer arguments, constants and launch parameters of a kernel that loops over images.

    `resident` programs run on a multiprocessor at once, each with `block` positions of a box.
    """
    return _tiled(q.shape, q.dtype, keys, size, resident * multiprocessors(q.device), block, input_precision(q))


@lru_cache(maxsize=256)
def _tiled(
    shape: torch.Size, dtype: torch.dtype, keys: int, size: int, resident: int, block: int, precision: str
) -> tuple[tuple[int], tuple[int, ...], dict[str, int]]:
    batch, height, width, heads, head_dim = shape
    items = triton.cdiv(height, TILE[0]) * triton.cdiv(width, TILE[1]) * heads
    images = loop_length(batch, items, resident)
    exact = dtype == torch.float32 and precision == "ieee"  # without tensor cores
    channels = padded(head_dim)
    block = block if channels <= 64 and not exact else 32
    options = {
        "HEAD_DIM": head_dim,
        "CHANNELS": channels,
        "SIZE": size,
        "TAPS": triton.next_power_of_2(size**2 + 1),
        "BLOCK": block,
        "BLOCKS": triton.cdiv((TILE[0] + size - 1) * (TILE[1] + size - 1), block),
        "KEYS": min(32, padded(keys)),
        "PRECISION": precision,
        "num_warps": 8 if exact else 4 if channels > 32 or precision == "tf32" else 2,
        "num_stages": 2,
    }
    return (items * triton.cdiv(batch, images),), (batch, images, heads, height, width, keys), options


def loop_length(rounds: int, items: int, resident: int) -> int:
    """How many of the `rounds` of each item a program does, so that all programs end as early as possible.

    `resident` programs run at once, so time is counted in waves of programs.
    """

    def time(parts: int) -> int:
        return triton.cdiv(items * parts, resident) * (triton.cdiv(rounds, parts) + PROLOGUE)

    return triton.cdiv(max(1, rounds), min(range(1, max(1, rounds) + 1), key=time))


def padded(length: int) -> int:
    """The next power of 2 that tensor cores support."""
    return max(16, triton.next_power_of_2(length))


@triton.jit
def program(heads, height, width):
    """What a program handles: (part of the images, head), the first row and column of its tile."""
    across = tl.cdiv(width, TILE_X)
    tiles = across * tl.cdiv(height, TILE_Y)
    program = tl.program_id(0)
    head, tile, part = program % heads, program // heads % tiles, program // (heads * tiles)
    return part, head, tile // across * TILE_Y, tile % across * TILE_X


@triton.jit
def positions(top, left, height, width):
    """The positions of a tile as indices into the map, and which are on it; others repeat its last row or column."""
    within = tl.arange(0, POSITIONS)
    y, x = top + within // TILE_X, left + within % TILE_X
    inside = (y < height) & (x < width)
    return tl.minimum(y, height - 1) * width + tl.minimum(x, width - 1), inside


@triton.jit
def box(block, top, left, height, width, SIZE: tl.constexpr, BLOCK: tl.constexpr, TAPS: tl.constexpr):
    """A block of the box around a tile: indices into the map, and the tap of each pair, (POSITIONS, BLOCK).

    Pairs outside a window have tap TAPS - 1, which stands for no tap. Positions outside the map get the tile's first
    index, and all their pairs have that tap.
    """
    WIDTH: tl.constexpr = TILE_X + SIZE - 1
    place, within = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, POSITIONS)
    y, x = top - SIZE // 2 + place // WIDTH, left - SIZE // 2 + place % WIDTH
    there = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    down = (place // WIDTH)[None, :] - (within // TILE_X)[:, None]
    across = (place % WIDTH)[None, :] - (within % TILE_X)[:, None]
    seen = (down >= 0) & (down < SIZE) & (across >= 0) & (across < SIZE) & there[None, :]
    seen &= ((top + within // TILE_X < height) & (left + within % TILE_X < width))[:, None]
    return tl.where(there, y * width + x, top * width + left), tl.where(seen, down * SIZE + across, TAPS - 1)


@triton.jit
def window_bias(local_bias, head, tap, SIZE: tl.constexpr):
    """The summand for the logits of pairs: the bias of their tap, -inf without a tap."""
    bias = tl.load(local_bias + head * SIZE * SIZE + tap, mask=tap < SIZE * SIZE, other=float("-inf"))
    return bias.to(tl.float32)


@triton.jit
def bias_rows(bias, head, queries, keys, first, index):
    """Pointers to pooled_bias[head, index, 0].

    The positions are close to `first`, so the distance from it fits in 32 bits even if the whole table does not.
    """
    return bias + (head * queries + first).to(tl.int64) * keys + (index - first) * keys


@triton.jit
def pooled_shift(bias, start, keys, KEYS: tl.constexpr):
    """A block of the pooled bias, from rows that `bias` points to; -inf after the last key."""
    number = start + tl.arange(0, KEYS)
    shift = tl.load(bias[:, None] + number[None, :], mask=(number < keys)[None, :], other=float("-inf"))
    return shift.to(tl.float32)


@triton.jit
def pooled_rows(
    pooled_k, pooled_v, k_row, v_row, start, keys,
    HEAD_DIM: tl.constexpr, CHANNELS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A block of pooled keys and values; those after the last repeat it."""
    number = tl.minimum(start + tl.arange(0, KEYS), keys - 1)
    key = load_rows(pooled_k, offsets(number, k_row, CHANNELS), HEAD_DIM)
    return key, load_rows(pooled_v, offsets(number, v_row, CHANNELS), HEAD_DIM)


@triton.jit
def offsets(index, stride, CHANNELS: tl.constexpr):
    """Offsets of the channels of rows, (len(index), CHANNELS); unsigned, they take half the registers."""
    return ((index * stride)[:, None] + tl.arange(0, CHANNELS)[None, :]).to(tl.uint32)


@triton.jit
def load_rows(pointer, offset, HEAD_DIM: tl.constexpr):
    """Rows of a head with zeros after HEAD_DIM."""
    channel = tl.arange(0, offset.shape[1])
    if offset.shape[1] == HEAD_DIM:
        return tl.load(pointer + offset)
    else:
        return tl.load(pointer + offset, mask=(channel < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def store_rows(pointer, offset, inside, rows, HEAD_DIM: tl.constexpr):
    """The counterpart of `load_rows`, of the rows that are inside."""
    mask = inside[:, None] & (tl.arange(0, offset.shape[1]) < HEAD_DIM)[None, :]
    tl.store(pointer + offset, rows.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def softmax_gradient(left, right, left_grad, right_grad, shift, lse, delta, PRECISION: tl.constexpr):
    """The weights exp(left right^T + shift - lse), and the gradient of their logits."""
    scores = tl.dot(left, tl.trans(right), shift, input_precision=PRECISION)
    products = tl.dot(left_grad, tl.trans(right_grad), input_precision=PRECISION)
    weights = tl.exp2(scores * LOG2E - lse * LOG2E)
    return weights, weights * (products - delta)
