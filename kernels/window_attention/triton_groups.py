"""What the Triton kernels of window attention share: which positions are the rows of a tile, and how they are read.

There are two ways to go. Groups of at most WIDEST tokens are packed: a tile holds as many whole groups as fit, so one
product of the tile with itself holds all logits of these groups, and a program walks along several tiles of one head,
for which it reads the bias once. Longer groups are cut into tiles of queries, which walk along tiles of keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import capability
from zoo.kernels.sizes import steps

LOG2E = tl.constexpr(1.4426950408889634)
UNSEEN = tl.constexpr(-1e30)
"""The logit of a pair that does not attend: finite, so that a query without a key has a softmax, though a void one."""
WIDEST = 64
"""Rows of the largest tile."""


@dataclass(frozen=True)
class Tiling:
    """How a call is cut into tiles: `own` rows stay with a program, `other` rows come and go; equal if packed."""

    packed: bool
    own: int
    other: int
    warps: int
    stages: int

    def options(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, size: list[int]) -> dict[str, int]:
        """The constexprs of every kernel, and its resources."""
        even = all(n % 8 == 0 for t in (q, k, v) for n in t.stride()[:-1])
        head = {"D": q.shape[-1], "BLOCK_D": padded_channels(q), "ALIGN": 8 if even else 1}
        tile = {"OWN": self.own} if self.packed else {"OWN": self.own, "OTHER": self.other}
        return {
            "SIZE_Y": size[0],
            "SIZE_X": size[1],
            **tile,
            **head,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def tiling(q: torch.Tensor, tokens: int, backward: bool = False) -> Tiling:
    """Tiles by generation, precision, head width and tokens of a group: as large as registers and shared memory allow.

    Without tensor cores a product holds whole rows of both factors in registers, in single precision.
    """
    plain, small = q.element_size() == 4 or capability(q.device) < 80, WIDEST // 2
    width = padded_channels(q) * (4 if plain else 2)
    light = width <= 128 and not plain
    stages = 2 if light else 1
    if tokens <= small or (tokens <= WIDEST and (light and width <= 64 if backward else width <= 128)):
        rows = small if tokens <= small else WIDEST
        warps = 8 if plain else rows // (16 if light else 8)
        return Tiling(True, rows, rows, warps, 1 if backward else stages)
    own = WIDEST if light or (width <= 256 and not backward) else small
    other = WIDEST if light and not backward and steps(tokens, small) % 2 == 0 else small
    if backward and width > 256:
        other //= 2
    return Tiling(False, own, other, 8 if plain else 4, stages)


def padded_channels(q: torch.Tensor) -> int:
    """Columns of a tile that holds a head."""
    return max(16, triton.next_power_of_2(q.shape[-1]))


def geometry(q: torch.Tensor, size: list[int], interval: list[int]) -> list[int]:
    """The integers of every kernel, in their order: map and heads, intervals, groups side by side and of an image.

    Groups that lie beyond the map because others of their number do not are counted, too.
    """
    down, across = (steps(n, s * i) * i for n, s, i in zip(q.shape[1:3], size, interval, strict=True))
    return [*q.shape[1:4], *interval, across, down * across]


def is_whole(q: torch.Tensor, size: list[int], interval: list[int]) -> bool:
    """Whether all groups lie on the map with all their tokens."""
    return all(n % (s * i) == 0 for n, s, i in zip(q.shape[1:3], size, interval, strict=True))


def readable(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy if a head's channels are not side by side or an image spans more than 32-bit offsets."""
    span = sum((n - 1) * abs(step) for n, step in zip(x.shape[1:], x.stride()[1:], strict=True))
    return x if x.stride(-1) == 1 and span < 2**31 else x.contiguous()


def strides_of(*tensors: torch.Tensor) -> list[int]:
    """Steps between images, rows, columns and heads."""
    return [n for t in tensors for n in t.stride()[:4]]


@triton.jit
def locate(
    group, token, exists, height, width, interval_y, interval_x, across,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr,
):  # fmt: skip
    """Where the tokens of groups lie, and whether they exist on the map itself."""
    down, right = group // across, group % across
    top = down // interval_y * SIZE_Y * interval_y + down % interval_y
    left = right // interval_x * SIZE_X * interval_x + right % interval_x
    row, column = token // SIZE_X, token % SIZE_X
    # The last row and column are found once a group: comparing every y and x would divide for each pair of tokens.
    inside = exists & (row < on_axis(top, height, interval_y)) & (column < on_axis(left, width, interval_x))
    return top + row * interval_y, left + column * interval_x, inside


@triton.jit
def on_axis(first, length, interval):
    """How many of the pixels `first`, `first + interval`, ... lie on an axis of that length; may be negative."""
    return (length - first + interval - 1) // interval


@triton.jit
def tokens_within(group, height, interval_y, across, SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr):
    """How many tokens of a group lie in its rows that the map has: all others are beyond it."""
    down = group // across
    top = down // interval_y * SIZE_Y * interval_y + down % interval_y
    return tl.minimum(tl.maximum(on_axis(top, height, interval_y), 0), SIZE_Y) * SIZE_X


@triton.jit
def read(
    t, image, y, x, head, inside, t_b, t_y, t_x, t_h,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """A head's channels at the positions of a tile, zeros where not `inside`."""
    channel = tl.arange(0, BLOCK_D)
    start = tl.multiple_of(image.to(tl.int64) * t_b + head * t_h, ALIGN)
    rows = tl.multiple_of(y * t_y + x * t_x, ALIGN)
    return tl.load(t + start + rows[:, None] + channel[None, :], mask=inside[:, None] & (channel < D), other=0.0)


@triton.jit
def first_pixel(image, height, width):
    """The number of the first pixel of an image."""
    return image.to(tl.int64) * height * width


@triton.jit
def places(t, start, pixel, head, heads, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Pointers into a contiguous map, at the pixels of a tile."""
    return t + (start * heads + head) * D + (pixel * heads * D)[:, None] + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def read_map(t, start, pixel, head, heads, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """`read`, from a contiguous map."""
    mask = inside[:, None] & (tl.arange(0, BLOCK_D) < D)
    return tl.load(places(t, start, pixel, head, heads, D, BLOCK_D), mask=mask, other=0.0)


@triton.jit
def write_map(t, rows, start, pixel, head, heads, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write a tile to a contiguous map."""
    mask = inside[:, None] & (tl.arange(0, BLOCK_D) < D)
    tl.store(places(t, start, pixel, head, heads, D, BLOCK_D), rows.to(t.dtype.element_ty), mask=mask)


@triton.jit
def bias_of(bias, head, query, key, exist, seen, TOKENS: tl.constexpr):
    """The bias to base 2 of pairs of tokens where they `exist`, and UNSEEN where not `seen`; `bias` may be None."""
    if bias is None:
        return tl.where(seen, 0.0, UNSEEN)
    else:
        pairs = (head * TOKENS + query[:, None]) * TOKENS + key[None, :]
        return tl.where(seen, tl.load(bias + pairs, mask=exist, other=0.0).to(tl.float32) * LOG2E, UNSEEN)


@triton.jit
def packed_rows(OWN: tl.constexpr, TOKENS: tl.constexpr):
    """For each row of a tile of whole groups: the group's number in the tile, its token, whether there is one."""
    row = tl.arange(0, OWN)
    return row // TOKENS, row % TOKENS, row < OWN // TOKENS * TOKENS


@triton.jit
def packed_bias(bias, head, slot, token, whole, TOKENS: tl.constexpr):
    """`bias_of` all pairs of rows of a tile of whole groups; what is left over sees itself."""
    own = slot[:, None] == slot[None, :]
    return bias_of(bias, head, token, token, own & whole[:, None], own, TOKENS)


@triton.jit
def packed_groups(number, slot, whole, groups, OWN: tl.constexpr, TOKENS: tl.constexpr):
    """The group of each row of a tile of whole groups, or the only one, and whether there is one."""
    if OWN // TOKENS == 1:
        return number, whole
    else:
        group = number * (OWN // TOKENS) + slot
        return group, whole & (group < groups)


@triton.jit
def program(number, heads):
    """Head and item of a program; the heads of an item are neighbours, as they are in memory."""
    return number % heads, number // heads
