"""Shared by the Triton kernels of routing attention: the positions of a tile's rows on the map, and tile sizes.

A list of regions is divided into tiles: a tile holds a part of one region, or as many whole regions as fit. Everything
that depends on the size of a region is a constant of the kernel, so no divisions are needed.

There are two methods. By default a program handles one region and goes through the list of regions to which it is
routed. If regions are so small that most rows of a tile would be empty, a program handles many regions, goes through
the whole map, and adds the logarithm of how often a region was chosen to the logits ("dense").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import capability, input_precision
from zoo.kernels.sizes import ceil_div

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
UNIT: tl.constexpr = tl.constexpr(8192.0)
"""The unit of logarithms in a table, chosen so that float16 can also represent zero choices."""
NARROWEST, WIDEST = 16, 64
"""Minimum and maximum rows of a tile: fewer cannot be multiplied, and more do not fit in registers."""
PER_TILE = 16
"""The constant cost of a tile, in rows."""


@dataclass(frozen=True)
class Tiling:
    """How a call is divided into programs.

    `own` rows stay with a program, `other` rows are loaded in turn; `tiles` programs handle an image and a head.
    `single`: one pass gives all gradients. `options` of a launch are in `constants`.
    """

    dense: bool
    single: bool
    own: int
    tiles: int
    table: int
    constants: dict[str, object]


def tiling(q: torch.Tensor, routes: torch.Tensor, region: list[int], backward: bool = False) -> Tiling:
    """Tiles by head width, precision, and how many positions a region and a list of regions have."""
    precision = input_precision(q)
    tensor_cores = capability(q.device) >= 80 and (q.element_size() == 2 or precision == "tf32")
    return _tiling(q.shape[1:], tuple(region), routes.shape[-1], tensor_cores, precision, backward)


@lru_cache(1024)
def _tiling(
    shape: tuple[int, ...], region: tuple[int, int], topk: int, tensor_cores: bool, precision: str, backward: bool
) -> Tiling:  # fmt: skip
    height, width, heads, head_dim = shape
    rows, columns = ceil_div(height, region[0]), ceil_div(width, region[1])
    regions, tokens, channels = rows * columns, region[0] * region[1], padded_channels(head_dim)
    dense = regions * tokens <= NARROWEST * topk  # otherwise the work saved outweighs the empty rows
    most, widest, warps, stages = largest_tile(channels, tensor_cores, backward, precision == "tf32")
    own = min(most, max(NARROWEST, triton.next_power_of_2(regions * tokens if dense else tokens)))
    if tensor_cores or backward:
        warps = max(warps * own // most, 1)
    listed = regions if dense else topk
    widest = min(widest, 2 * own) if backward else widest
    sizes = [size for size in (64, 32, 16) if size <= widest]
    other = min(sizes, key=lambda size: tiles_of(listed, tokens, size) * (size + PER_TILE))
    tiles = tiles_of(regions, tokens, own) if dense else regions * ceil_div(tokens, own)
    table = max(table_columns(regions, tokens, size) for size in (own, other))
    constants = {
        "REGION_H": region[0], "REGION_W": region[1], "COLUMNS": columns, "REGIONS": regions, "TOPK": topk,
        "HEADS": heads, "TILES": tiles, "OWN": own, "OTHER": other, "STEPS": tiles_of(listed, tokens, other),
        "DENSE": dense,
        "INSIDE": (height, width) == (rows * region[0], columns * region[1]),
        "FULL": tokens % other == 0 or (other % tokens == 0 and (dense or topk % (other // tokens) == 0)),
        "D": head_dim, "BLOCK_D": channels, "PRECISION": precision, "num_warps": warps, "num_stages": stages,
    }  # fmt: skip
    return Tiling(dense, topk == 1 and tokens <= own and not dense, own, tiles, table, constants)


def tiles_of(regions: int, tokens: int, rows: int) -> int:
    """How many tiles a list of regions takes."""
    return ceil_div(regions, rows // tokens) if tokens < rows else regions * ceil_div(tokens, rows)


def table_columns(regions: int, tokens: int, rows: int) -> int:
    """Regions beyond the last may be read as well, by the last tile of a list of all; see `_log_choices`."""
    fit = max(rows // tokens, 1)
    slots = max(NARROWEST, triton.next_power_of_2(fit))
    return ceil_div(ceil_div(regions, fit) * fit - fit + slots, NARROWEST) * NARROWEST


def largest_tile(channels: int, tensor_cores: bool, backward: bool, tf32: bool) -> tuple[int, int, int, int]:
    """Rows that stay, rows loaded in turn, warps and stages, such that no registers are spilled.

    Without tensor cores a thread holds whole rows of both factors. (Triton does not use them before Ampere.)
    """
    channels *= 2 if tf32 else 1  # as many bytes
    if channels > 64:
        return (32, 32, 4, 2) if tensor_cores else (16, 16, 8, 2)
    if not tensor_cores:
        if backward:
            return (16, 32, 4, 1) if channels > 16 else (32, 16, 4, 1)
        return 32, 32, 4, 2
    if backward:
        return (64, 32, 8, 2) if channels > 32 and not torch.version.hip else (64, 64, 4, 3)
    return (64, 32, 4, 3) if channels > 32 else (64, 64, 4, 3)


def padded_channels(head_dim: int) -> int:
    """Columns of a tile that holds a head."""
    return max(NARROWEST, triton.next_power_of_2(head_dim))


def readable(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy if a head's channels are not contiguous or an image exceeds 32-bit offsets."""
    return x if _fits(x.shape[1:], x.stride()[1:]) else x.contiguous()


@lru_cache(1024)
def _fits(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    span = sum((n - 1) * abs(step) for n, step in zip(shape, strides, strict=True))
    return strides[-1] == 1 and span < 2**31


@triton.jit
def program(number, tiles, heads):
    """Head, tile and image of a program; the heads of a tile are neighbours, as they are in memory."""
    return number % heads, number // heads % tiles, (number // heads // tiles).to(tl.int64)


@triton.jit
def rows(tile, regions, TOKENS: tl.constexpr, BLOCK: tl.constexpr, SHARED: tl.constexpr):
    """Place in a list of regions and token of each row of a tile, and whether there is such a row.

    One region for all rows, unless tiles are shared by regions that are smaller.
    """
    row = tl.arange(0, BLOCK)
    if SHARED and TOKENS < BLOCK:
        place = tile * (BLOCK // TOKENS) + row // TOKENS
        return place, row % TOKENS, (row < BLOCK // TOKENS * TOKENS) & (place < regions)
    else:
        parts: tl.constexpr = (TOKENS + BLOCK - 1) // BLOCK
        token = tile % parts * BLOCK + row
        return tile // parts, token, token < TOKENS


@triton.jit
def listed_rows(tile, listed, regions, TOKENS: tl.constexpr, BLOCK: tl.constexpr, DENSE: tl.constexpr):
    """Region and token of the rows of a tile of a list of regions, or of all regions, and whether they exist."""
    place, token, exists = rows(tile, regions, TOKENS, BLOCK, True)
    if DENSE:
        return place, token, exists
    elif TOKENS < BLOCK:
        return tl.load(listed + place, mask=exists, other=0).to(tl.int32), token, exists
    else:
        return tl.load(listed + place).to(tl.int32), token, exists


@triton.jit
def offsets(region, token, x_y, x_x, REGION_H: tl.constexpr, REGION_W: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets of positions in an image: a region's origin plus an offset that is the same for all regions."""
    origin = region // COLUMNS * (REGION_H * x_y) + region % COLUMNS * (REGION_W * x_x)
    return origin + (token // REGION_W * x_y + token % REGION_W * x_x)


@triton.jit
def on_map(
    region, token, exists, height, width,
    REGION_H: tl.constexpr, REGION_W: tl.constexpr, COLUMNS: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """Whether a position exists on the map itself; INSIDE: all regions do."""
    if INSIDE:
        return exists
    else:
        bottom, right = height - region // COLUMNS * REGION_H, width - region % COLUMNS * REGION_W
        return exists & (token // REGION_W < bottom) & (token % REGION_W < right)


@triton.jit
def read(x, places, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A head's channels at the positions of a tile, zeros where not `inside`."""
    channel = tl.arange(0, BLOCK_D)
    return tl.load(x + places[:, None] + channel[None, :], mask=inside[:, None] & (channel < D)[None, :], other=0.0)


@triton.jit
def write(x, values, places, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of `read`."""
    channel = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (channel < D)[None, :]
    tl.store(x + places[:, None] + channel[None, :], values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def attention_logits(
    queries, keys, scale, table, columns, region, exists, tile, listed,
    TOKENS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, DENSE: tl.constexpr, FULL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits to base 2 of OWN queries and OTHER keys, minus infinity for keys that are not listed.

    Keys outside the map are zeros that take part in attention. FULL: all keys are listed.
    """
    logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (scale * LOG2E)
    if DENSE:
        logits += _log_choices(table, columns, region, exists, tile, TOKENS, OWN, OTHER, PRECISION)
    if not FULL:
        logits = tl.where(listed[None, :], logits, -float("inf"))
    return logits


@triton.jit
def _log_choices(
    table, columns, region, exists, tile, TOKENS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Logarithms of how often a tile's queries chose each key of tile number `tile` of all, (OWN, OTHER).

    The table's columns for the regions of that tile are repeated for the tokens of each region by a product.
    """
    fit: tl.constexpr = OTHER // TOKENS if OTHER > TOKENS else 1
    parts: tl.constexpr = (TOKENS + OTHER - 1) // OTHER
    slots: tl.constexpr = triton.next_power_of_2(fit) if fit > 16 else 16
    slot = tl.arange(0, slots)
    row = (region + tl.zeros([OWN], tl.int32)) * columns
    logs = tl.load(table + row[:, None] + (tile // parts * fit + slot)[None, :], mask=exists[:, None], other=0.0)
    repeated = tl.where(slot[:, None] == (tl.arange(0, OTHER) // TOKENS)[None, :], UNIT, 0.0).to(logs.dtype)
    return tl.dot(logs, repeated, input_precision=PRECISION)
