"""What the Triton kernels of routing attention share: how rows of a tile lie on the map, and the sizes of tiles.

Positions are counted by region (row-major) and by token inside it (row-major), so a list of regions is a list of
positions, of which a tile takes the next ones. Positions beyond the map exist, but are never read or written.

There are two ways to go. By default a program serves one region and walks along the list of regions that it is routed
to. Where regions are so small that most rows of a tile would stay empty, a tile is filled with the positions of many
regions, walks along the whole map, and adds the logarithm of how often a region was chosen to the logits ("dense").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import capability, launch
from zoo.kernels.sizes import steps

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
NARROWEST, WIDEST = 16, 64
"""Rows of a tile: no fewer can be multiplied, and no more are held in registers."""


@dataclass(frozen=True)
class Tiling:
    """How a call is cut into programs.

    `own` rows stay with a program, `other` rows come and go; `tiles` programs serve an image and a head.
    """

    dense: bool
    own: int
    other: int
    tiles: int
    warps: int
    stages: int

    def options(self, q: torch.Tensor) -> dict[str, int]:
        """For a launch."""
        head = {"D": q.shape[-1], "BLOCK_D": padded_channels(q.shape[-1])}
        tile = {"OWN": self.own, "OTHER": self.other, "DENSE": self.dense}
        return head | tile | {"num_warps": self.warps, "num_stages": self.stages}


def tiling(q: torch.Tensor, routes: torch.Tensor, region: list[int], backward: bool = False) -> Tiling:
    """Tiles by head width, precision, and how many positions a region and a list of regions have."""
    regions, topk = routes.shape[1:]
    tokens = region[0] * region[1]
    dense = regions * tokens <= NARROWEST * topk  # else the work saved outweighs the empty rows
    tensor_cores = q.element_size() == 2 and capability(q.device) >= 80
    own, other, warps, stages = largest_tile(padded_channels(q.shape[-1]), tensor_cores, backward)
    if not dense and triton.next_power_of_2(tokens) < own:
        before, own = own, max(NARROWEST, triton.next_power_of_2(tokens))
        if tensor_cores or backward:
            warps = max(warps * own // before, 1)
    listed = (regions if dense else topk) * tokens
    other = min(other, max(NARROWEST, triton.next_power_of_2(listed)))
    if other == WIDEST and 0 < listed % WIDEST <= WIDEST // 2:
        other //= 2  # the last tile would be half empty
    tiles = steps(regions * tokens, own) if dense else regions * steps(tokens, own)
    return Tiling(dense, own, other, tiles, warps, stages)


def largest_tile(channels: int, tensor_cores: bool, backward: bool) -> tuple[int, int, int, int]:
    """Rows that stay, rows that come and go, warps and stages, such that nothing is spilled from registers.

    Without tensor cores a thread holds whole rows of both factors. (Triton knows none before Ampere.)
    """
    if channels > 64:
        return (32, 32, 4, 2) if tensor_cores else (16, 16, 8, 2)
    if not tensor_cores:
        if backward:
            return (16, 32, 4, 1) if channels > 16 else (32, 16, 4, 1)
        return 32, 32, 4, 1
    if backward:
        return (64, 32, 8, 3) if channels > 32 and not torch.version.hip else (64, 32, 4, 3)
    return (64, 32, 4, 3) if channels > 32 else (64, 64, 4, 3)


def padded_channels(head_dim: int) -> int:
    """Columns of a tile that holds a head."""
    return max(NARROWEST, triton.next_power_of_2(head_dim))


def readable(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy if a head's channels are not side by side or an image spans more than 32-bit offsets."""
    span = sum((n - 1) * abs(step) for n, step in zip(x.shape[1:], x.stride()[1:], strict=True))
    return x if x.stride(-1) == 1 and span < 2**31 else x.contiguous()


def map_arguments(q: torch.Tensor, routes: torch.Tensor, region: list[int], plan: Tiling) -> list[int]:
    """The integers of every kernel, in their order."""
    height, width, heads = q.shape[1:4]
    return [height, width, heads, *region, steps(width, region[1]), *routes.shape[1:], plan.tiles]


def log_counts(routes: torch.Tensor) -> torch.Tensor:
    """How often a region was chosen by another, (B, regions, regions) as float32 logarithms to base 2."""
    batch, regions, topk = routes.shape
    out = routes.new_empty((batch, regions, regions), dtype=torch.float32)
    block = triton.next_power_of_2(regions)
    launch(_log_counts, (batch * regions,), routes, out, regions, topk, BLOCK=block, num_warps=1)
    return out


@triton.jit
def _log_counts(routes, out, regions, topk, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    others = tl.arange(0, BLOCK)
    counts = tl.zeros([BLOCK], tl.int32)
    for rank in range(topk):
        counts += (tl.load(routes + row * topk + rank).to(tl.int32) == others).to(tl.int32)
    logs = tl.where(counts > 0, tl.log2(tl.maximum(counts, 1).to(tl.float32)), -float("inf"))
    tl.store(out + row * regions + others, logs, mask=others < regions)


@triton.jit
def program(number, tiles, heads):
    """Head, tile and image of a program; the heads of a tile are neighbours, as they are in memory."""
    return number % heads, number // heads % tiles, (number // heads // tiles).to(tl.int64)


@triton.jit
def own_rows(tile, regions, tokens, BLOCK: tl.constexpr, DENSE: tl.constexpr):
    """Region and token of each row of a tile, and whether there is such a row; one region for all unless DENSE."""
    if DENSE:
        slot = tile * BLOCK + tl.arange(0, BLOCK)
        return slot // tokens, slot % tokens, slot < regions * tokens
    else:
        tiles = tl.cdiv(tokens, BLOCK)
        token = tile % tiles * BLOCK + tl.arange(0, BLOCK)
        return tile // tiles, token, token < tokens


@triton.jit
def listed_rows(begin, positions, listed, tokens, BLOCK: tl.constexpr, DENSE: tl.constexpr):
    """Region and token of the rows from `begin` of a list of regions, or of all regions, and whether there are such."""
    slot = begin + tl.arange(0, BLOCK)
    exists = slot < positions
    region = slot // tokens
    token = slot - region * tokens
    if not DENSE:
        region = tl.load(listed + region, mask=exists, other=0).to(tl.int32)
    return region, token, exists


@triton.jit
def on_map(region, token, exists, height, width, region_height, region_width, columns):
    """Where a position lies, and whether it exists on the map itself."""
    y = region // columns * region_height + token // region_width
    x = region % columns * region_width + token % region_width
    return y, x, exists & (y < height) & (x < width)


@triton.jit
def read(x, image, row, column, head, x_b, x_y, x_x, x_h, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A head's channels at the positions of a tile, zeros where not `inside`."""
    channel = tl.arange(0, BLOCK_D)
    places = x + image * x_b + head * x_h + (row * x_y + column * x_x)[:, None] + channel[None, :]
    return tl.load(places, mask=inside[:, None] & (channel < D)[None, :], other=0.0)


@triton.jit
def write(x, rows, pixel, inside, heads, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write a tile to a contiguous map of which `x` points to the image and head."""
    channel = tl.arange(0, BLOCK_D)
    places = x + (pixel * heads * D)[:, None] + channel[None, :]
    tl.store(places, rows.to(x.dtype.element_ty), mask=inside[:, None] & (channel < D)[None, :])


@triton.jit
def keys_of(choice, image, region, regions, topk, tokens, DENSE: tl.constexpr):
    """What a query region's own part of `choice` is, and how many positions it attends."""
    if DENSE:
        return choice + image * regions * regions, regions * tokens
    else:
        return choice + (image * regions + region) * topk, topk * tokens


@triton.jit
def attended(logits, choice, region, exists, other, listed, regions, DENSE: tl.constexpr):
    """Logits (queries, keys), and minus infinity for the pairs that do not attend."""
    if DENSE:
        pairs = region[:, None] * regions + other[None, :]
        return logits + tl.load(choice + pairs, mask=exists[:, None] & listed[None, :], other=-float("inf"))
    else:
        return tl.where(listed[None, :], logits, -float("inf"))
