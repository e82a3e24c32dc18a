"""What the forward and the backward kernels share: tiles of positions, rows of memory, launch parameters."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """(B, H, W, heads, head_dim) as (B, H*W, heads*head_dim); a copy only if its strides do not allow that view."""
    rows = x.flatten(3).flatten(1, 2)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def as_taps(extra: torch.Tensor) -> torch.Tensor:
    """(B, H, W, heads, size**2) as (B, H*W, heads, size**2), the last side by side; copied only if need be."""
    rows = extra.flatten(1, 2)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def leading_strides(*rows: torch.Tensor) -> list[int]:
    """The first two strides of each: from image to image and from position to position."""
    return [stride for t in rows for stride in t.stride()[:2]]


def window_launch(q: torch.Tensor, size: int, numbers: int) -> tuple[dict[str, int], tuple[int]]:
    """Launch parameters and grid of a kernel whose tile is a rectangle of positions, `numbers` channels in all."""
    batch, height, width, heads, head_dim = q.shape
    channels = padded(head_dim)
    positions = min(64, max(16, numbers // channels // (1 if size <= 3 else 4)))
    rows = 8 if positions == 64 else 4
    columns = positions // rows
    grid = (batch * triton.cdiv(height, rows) * triton.cdiv(width, columns) * heads,)
    shape = {"HEAD_DIM": head_dim, "CHANNELS": channels, "SIZE": size, "ROWS": rows, "COLUMNS": columns}
    warps = 8 if q.dtype == torch.float32 or size > 3 or positions * channels > numbers else 4
    return shape | {"num_warps": warps, "num_stages": 2}, grid


def flat_options(q: torch.Tensor, keys: int, positions: int, most_keys: int) -> dict[str, int]:
    """Launch parameters of a kernel whose tiles are runs of positions and of pooled keys."""
    channels = padded(q.shape[-1])
    warps = 8 if q.dtype == torch.float32 else 4  # without tensor cores a product takes more registers
    return {
        "HEAD_DIM": q.shape[-1],
        "CHANNELS": channels,
        "POSITIONS": positions // (2 if channels > 64 else 1),
        "KEYS": min(most_keys // (2 if channels > 32 else 1), padded(keys)),
        "num_warps": warps,
        "num_stages": 2,
    }


def padded(length: int) -> int:
    """The next power of 2 that tensor cores take."""
    return max(16, triton.next_power_of_2(length))


@triton.jit
def program(heads, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What program handles: (batch, head), the first position of its tile, rows and columns of all of them.

    Neighbouring programs are heads of one tile, which lie side by side in memory.
    """
    across = tl.cdiv(width, COLUMNS)
    tiles = across * tl.cdiv(height, ROWS)
    program = tl.program_id(0)
    head, tile, batch = program % heads, program // heads % tiles, program // (heads * tiles)
    top, left = tile // across * ROWS, tile % across * COLUMNS
    within = tl.arange(0, ROWS * COLUMNS)
    return batch.to(tl.int64), head, top * width + left, top + within // COLUMNS, left + within % COLUMNS


@triton.jit
def neighbor(y, x, height, width, dy, dx):
    """The position (y + dy, x + dx) as an index into the map, and whether both ends lie on the map."""
    i, j = y + dy, x + dx
    inside = (y < height) & (x < width) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
    return i * width + j, inside


@triton.jit
def load_rows(pointer, index, inside, stride, HEAD_DIM: tl.constexpr, CHANNELS: tl.constexpr):
    """The channels of one head at each index, (len(index), CHANNELS); zeros where not inside and behind HEAD_DIM."""
    channel = tl.arange(0, CHANNELS)
    mask = inside[:, None] & (channel < HEAD_DIM)[None, :]
    return tl.load(pointer + (index * stride)[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, index, inside, stride, rows, HEAD_DIM: tl.constexpr, CHANNELS: tl.constexpr):
    """The counterpart of `load_rows`."""
    channel = tl.arange(0, CHANNELS)
    mask = inside[:, None] & (channel < HEAD_DIM)[None, :]
    tl.store(pointer + (index * stride)[:, None] + channel[None, :], rows.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def bias_rows(bias, head, queries, keys, first, index):
    """Pointers to pooled_bias[head, index, 0]; those of positions behind the last one to any row.

    The positions follow `first` closely, so that the distance from it fits 32 bits where the whole table may not.
    """
    bias += (head * queries + first).to(tl.int64) * keys
    return bias + (tl.minimum(index, queries - 1) - first) * keys


@triton.jit
def load_tap(extra, index, seen, row, tap):
    """extra[index, tap] in float32, zeros where not `seen`."""
    return tl.load(extra + index * row + tap, mask=seen, other=0.0).to(tl.float32)


@triton.jit
def softmax_gradient(left, right, left_grad, right_grad, shift, lse, delta):
    """The weights exp(left right^T + shift - lse), and the gradient of their logits."""
    scores = tl.dot(left, tl.trans(right), shift, input_precision="ieee")
    products = tl.dot(left_grad, tl.trans(right_grad), input_precision="ieee")
    weights = tl.exp2((scores - lse) * LOG2E)
    return weights, weights * (products - delta)
