"""Divides a call of window attention into programs; computed once for each shape, layout and GPU."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton

from zoo.kernels.launch import capability, input_precision, multiprocessors
from zoo.kernels.sizes import ceil_div
from zoo.kernels.window_attention.triton_bias import blocks_of

WIDEST = 64
"""The number of tokens in the largest group that is packed."""
WARPS = 4
"""Of a program of which a multiprocessor holds PER_SM, a number in each module with a kernel."""


class Call(NamedTuple):
    """The properties of a call on which plans depend."""

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    bytes: int
    size: tuple[int, int]
    interval: tuple[int, int]
    biased: bool
    precision: str
    generation: int
    multiprocessors: int

    @property
    def heads(self) -> int:
        """Heads of each position."""
        return self.shape[3]

    @property
    def tokens(self) -> int:
        """Tokens of a group."""
        return self.size[0] * self.size[1]

    @property
    def groups(self) -> int:
        """Groups of an image, including groups outside the map that complete the grid."""
        down, across = self._groups()
        return down * across

    def whole(self) -> bool:
        """Whether all tokens of all groups are on the map."""
        return all(n % (s * i) == 0 for n, s, i in zip(self.shape[1:3], self.size, self.interval, strict=True))

    def integers(self) -> tuple[int, ...]:
        """Strides, map, heads, intervals and groups side by side: the first integers of every kernel."""
        strides = (n for steps_ in self.strides for n in steps_[:4])
        return (*strides, *self.shape[1:4], *self.interval, self._groups()[1])

    def _groups(self) -> tuple[int, ...]:
        sides = zip(self.shape[1:3], self.size, self.interval, strict=True)
        return tuple(ceil_div(n, s * i) * i for n, s, i in sides)

    def table(self) -> dict[str, int]:
        """Blocks of the table of the bias, down and across."""
        return dict(zip(("DOWN", "ACROSS"), blocks_of(self.tokens), strict=True))

    def constants(self) -> dict[str, object]:
        """The constexprs of every kernel but its tiles."""
        even = all(n % 8 == 0 for strides in self.strides for n in strides[:-1])
        return {
            "SIZE_Y": self.size[0],
            "SIZE_X": self.size[1],
            "WHOLE": self.whole(),
            "D": self.shape[4],
            "BLOCK_D": padded_channels(self.shape[4]),
            "ALIGN": 8 if even else 1,
            "PRECISION": self.precision,
        }


def call_of(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, size: list[int], interval: list[int]
) -> Call:
    """The `Call` for these arguments, on the device of q."""
    strides, bytes_ = (q.stride(), k.stride(), v.stride()), q.element_size()
    device = q.device
    where = (input_precision(q), capability(device), multiprocessors(device))
    group, steps = (size[0], size[1]), (interval[0], interval[1])
    return Call(tuple(q.shape), strides, bytes_, group, steps, bias is not None, *where)


class Tiling(NamedTuple):
    """Tiles of a kernel: `own` rows stay with a program, `other` rows are loaded in turn; equal if packed."""

    packed: bool
    own: int
    other: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """Constexprs and resources of a launch."""
        tile = {"OWN": self.own} if self.packed else {"OWN": self.own, "OTHER": self.other}
        return {**tile, "num_warps": self.warps, "num_stages": self.stages}


@lru_cache(maxsize=1024)
def tiling(call: Call, kernel: str = "forward") -> Tiling:
    """Tiles by generation, precision, head width and tokens of a group: as large as registers and shared memory allow.

    Without tensor cores a product holds whole rows of both factors in registers, in single precision.
    """
    plain = call.generation < 80 or (call.bytes == 4 and call.precision == "ieee")
    width = padded_channels(call.shape[4]) * (4 if plain else call.bytes)
    few = width <= 128 if kernel == "forward" else width <= 64 and not plain
    tight = call.generation < 80 and width > 256 and kernel != "forward"  # 64 KiB of shared memory
    if not tight and (call.tokens <= WIDEST // 2 or (call.tokens <= WIDEST and few)):
        return _packed_tiling(call, kernel, plain, width)
    return _cut_tiling(call, kernel, plain, width)


def _packed_tiling(call: Call, kernel: str, plain: bool, width: int) -> Tiling:
    rows, light = WIDEST if call.tokens > WIDEST // 2 else WIDEST // 2, width <= 128 and not plain
    if kernel == "forward":
        warps, stages = rows // (16 if light else 8), 2 if width <= 128 else 1
    else:
        warps = rows // (16 if light and call.bytes == 2 else 8)
        # The bias, its gradient and any masks may leave no registers for prefetching.
        full = call.biased and (call.tokens > 56 or (rows == WIDEST and not call.whole()))
        stages = 2 if light and call.generation >= 90 and not full else 1
    return Tiling(True, rows, rows, 8 if plain else warps, stages)


def _cut_tiling(call: Call, kernel: str, plain: bool, width: int) -> Tiling:
    small, light, narrow = WIDEST // 2, width <= 128 and not plain, width <= 64 and not plain
    own = WIDEST if light or (width <= 256 and kernel == "forward") else small
    other, warps, stages = small, 8 if plain else WARPS, 2 if light else 1
    if kernel == "forward":
        other = WIDEST if light and ceil_div(call.tokens, small) % 2 == 0 else small
        stages = 1 if width > 128 else 3 if light and call.generation < 90 else 2
        if narrow and ceil_div(call.tokens, WIDEST) % 2 == 0:
            own, warps = 2 * WIDEST, 2 * WARPS
    elif kernel == "queries" and width > 256 and call.generation < 80:
        own = small // 2
    elif kernel == "keys":
        other = WIDEST if narrow else small if width <= 256 else small // 2
        stages = 2 if width <= 128 and (call.biased and call.whole() if plain else call.bytes == 2) else 1
    return Tiling(False, own, other, warps, stages)


def padded_channels(channels: int) -> int:
    """Columns of a tile that holds a head."""
    return max(16, triton.next_power_of_2(channels))


def residents(call: Call, tiles: Tiling, per_sm: int) -> int:
    """How many programs run at once."""
    return max(1, call.multiprocessors * per_sm * WARPS // tiles.warps)


def images_of(work: int, batch: int, resident: int) -> int:
    """Images per program, given `work` programs per image, such that the last wave is full.

    The start of a program takes about as long as an image.
    """
    return min(range(batch, 0, -1), key=lambda n: ceil_div(work * ceil_div(batch, n), resident) * (n + 1), default=1)


def share_of(call: Call, work: int, places: int, resident: int, least: int) -> tuple[int, int]:
    """Numbers of places and images over which a program sums the bias's gradient, at least `least` in all if possible.

    There are `work` programs for a place.
    """
    batch = call.shape[0]
    span = max(1, work * places // resident) if call.biased else 1
    images = images_of(work * ceil_div(places, span), batch, resident)
    span = max(span, min(places, ceil_div(least, images)))
    return span, max(images, min(batch, ceil_div(least, span)))


@lru_cache(maxsize=1024)
def cut_plan(call: Call, kernel: str, per_sm: int) -> tuple[tuple[int], tuple[int, ...], dict[str, object]]:
    """Grid, integers and options of a kernel whose programs have a tile of a group, in some images."""
    tile, batch = tiling(call, kernel), call.shape[0]
    tiles = ceil_div(call.tokens, tile.own)
    places = call.groups * tiles
    images = images_of(places * call.heads, batch, residents(call, tile, per_sm))
    grid = (places * call.heads * ceil_div(batch, images),)
    options = call.constants() | call.table() | tile.options()
    return grid, (*call.integers(), places, images, batch, tiles), options


@lru_cache(maxsize=1024)
def readable(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a head's channels are contiguous and an image fits in 32-bit offsets."""
    span = sum((n - 1) * abs(step) for n, step in zip(shape[1:], stride[1:], strict=True))
    return stride[-1] == 1 and span < 2**31


def in_place(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors, with copies of those that kernels cannot read in place."""
    return [t if readable(t.shape, t.stride()) else t.contiguous() for t in tensors]
