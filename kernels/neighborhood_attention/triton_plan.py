"""Divides the positions of all images into tiles and assigns tiles to programs; computed once per shape."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
import triton

from zoo.kernels.launch import input_precision, multiprocessors
from zoo.kernels.neighborhood_attention.triton_lattice import COLUMNS, ROWS

LARGEST = 0.5
"""The maximum memory of a table of pairs relative to the queries; a larger one would serve too few tiles."""
PROLOGUE = 0.3
"""The constant cost of a program, in units of its cost per tile of an image."""
SUMS = 1.5
"""The same if it writes sums of all its pairs."""


class Plan(NamedTuple):
    """The launch configuration of a kernel."""

    grid: tuple[int]
    """Programs: one for every stretch of tiles, chunk of images and head."""
    numbers: tuple[int, ...]
    """Strides of q and k, and how the work is shared."""
    options: dict[str, object]
    """Constants and launch parameters."""
    table: tuple[int, int] | None
    """Shape of the table of pairs, if there is one: programs that write it, numbers of each."""
    sums: tuple[int, int, int]
    """Shape of the sums of pairs: programs, rows, columns."""
    table_numbers: tuple[int, ...]
    table_options: dict[str, object]


class Kernel(NamedTuple):
    """The properties of a kernel that its plan depends on."""

    keys: bool
    """Whether its tiles contain queries and its boxes keys; else the reverse."""
    blocks: int
    """How many blocks of a box it can hold at once, in half precision with heads of up to 32 channels."""
    sums: bool = False
    """Whether each program writes a sum of all its pairs, which should take less memory than its inputs."""
    registers: int = 0
    """The maximum number of registers per thread, if the compiler would otherwise take all."""


FORWARD = Kernel(True, 10)
QUERIES = Kernel(True, 9, sums=True, registers=200)
KEYS = Kernel(False, 10)


def plan_of(
    kernel: Kernel, per_sm: int, q: torch.Tensor, k: torch.Tensor, biased: bool, size: list[int], dilation: list[int]
) -> Plan:
    """The plan of a kernel for tensors like q and k, with `per_sm` programs per multiprocessor."""
    return _plan(
        kernel,
        tuple(q.shape),
        (*q.stride()[:4], *k.stride()[:4]),
        q.dtype,
        input_precision(q),
        biased,
        tuple(size),
        tuple(dilation),
        per_sm * multiprocessors(q.device),
    )


@lru_cache(1024)
def _plan(
    kernel: Kernel,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    precision: str,
    biased: bool,
    size: tuple[int, int],
    dilation: tuple[int, int],
    resident: int,
) -> Plan:
    batch, height, width, heads, head_dim = shape
    block_d = max(16, triton.next_power_of_2(head_dim))
    groups = [(length // d, triton.cdiv(length, d)) for length, d in zip((height, width), dilation, strict=True)]
    tile = _tile(groups, size, kernel.keys)
    axes = [_axis(*axis, kernel.keys) for axis in zip(groups, size, tile, strict=True)]
    (down, kinds_y, _, rows), (across, kinds_x, run, columns) = axes
    sets_y, sets_x = (len(set(members)) for members in groups)

    blocks = triton.cdiv(rows * columns, COLUMNS)
    light = block_d <= 32 and dtype.itemsize == 2
    few = 1 if block_d > 32 and dtype == torch.float32 else 2
    chunks = 1 if light and blocks <= kernel.blocks else triton.cdiv(blocks, 6 if light else few)
    kinds = sets_y * kinds_y * sets_x * kinds_x * (heads if biased else 1)
    table = kinds * chunks * triton.cdiv(blocks, chunks), ROWS * COLUMNS
    too_large = 4 * prod(table) > LARGEST * prod(shape) * dtype.itemsize
    if too_large:
        chunks = triton.cdiv(blocks, few)
    each = triton.cdiv(blocks, chunks)

    longest = max(strides[0], strides[4], prod(shape[1:]), 1)
    most = max(1, (2**31 - 1) // longest - 1)  # a program counts in 32 bits
    bytes_of_pairs = 4 * COLUMNS * chunks * each
    least = triton.cdiv(bytes_of_pairs, 3 * head_dim * dtype.itemsize) if kernel.sums and biased else 1
    tiles = prod(dilation) * down * across * heads
    once = SUMS if kernel.sums and biased else PROLOGUE
    share = min(most, max(_share(batch, tiles, resident, once), min(least, batch), 1))
    stretch = min(run, max(triton.cdiv(least, max(batch, 1)), tiles // (4 * resident), 1))
    programs = tiles // across * (kinds_x - 1 + triton.cdiv(run, stretch)) * triton.cdiv(batch, share)
    unit = 1 if any(n % 8 for n in strides) else 8
    lattice = (height, width, heads, *dilation)
    sides = {"SIZE_Y": size[0], "SIZE_X": size[1], "TILE_Y": tile[0], "TILE_X": tile[1]}
    constants: dict[str, object] = {**sides, "KEYS": kernel.keys}
    limit = {"maxnreg": kernel.registers} if kernel.registers and light and not torch.version.hip else {}
    return Plan(
        (programs,),
        (*(n // unit for n in strides), batch, share, *lattice, down, kinds_y, kinds_x, sets_x * kinds_x, run, stretch),
        constants
        | {
            "BLOCKS": each,
            "CHUNKS": chunks,
            "UNIT": unit,
            "D": head_dim,
            "BLOCK_D": block_d,
            "PRECISION": precision,
            "num_warps": (4 if head_dim <= 32 else 8) if dtype.itemsize == 4 else (2 if head_dim <= 64 else 4),
            "num_stages": 2,
        }
        | limit,
        None if too_large else table,
        (programs, ROWS, COLUMNS * chunks * each),
        (height, width, heads if biased else 1, *dilation, kinds_y, kinds_x, sets_x * kinds_x, chunks * each),
        constants | {"num_warps": 2},
    )


def _share(batch: int, tiles: int, resident: int, once: float) -> int:
    """Images per program, such that concurrent programs finish at about the same time.

    `once` is the constant cost of a program, in units of its cost per tile of an image.
    """

    def time(chunks: int) -> float:
        return triton.cdiv(tiles * chunks, resident) * (triton.cdiv(batch, chunks) + once)

    return triton.cdiv(batch, min(range(1, batch + 1), key=time, default=1))


def _tile(groups: list[tuple[int, int]], size: tuple[int, int], keys: bool) -> tuple[int, int]:
    """Height and width of the tile of ROWS positions that needs the fewest blocks."""

    def blocks(height: int) -> int:
        (down, _, _, rows), (across, _, _, columns) = (
            _axis(*axis, keys) for axis in zip(groups, size, (height, ROWS // height), strict=True)
        )
        return down * across * triton.cdiv(rows * columns, COLUMNS)

    height = min((4, 8, 2, 16, 1, 32), key=blocks)
    return height, ROWS // height


def _axis(members: tuple[int, int], size: int, tile: int, keys: bool) -> tuple[int, int, int, int]:
    """Tiles of a group, kinds of tiles, tiles that are alike and the longest box on one axis, as the kernels see it.

    `members` are those of the smallest and of the largest group.
    """
    margin = size // 2 if keys else size
    before = triton.cdiv(margin, tile)
    tiles = triton.cdiv(members[1], tile)
    like = [max((n - margin) // tile - before - 1, 0) for n in members]
    longest = max(_box(first, n, size, tile, keys) for n in members for first in range(0, n, tile))
    return tiles, tiles - min(like), 1 + max(like), longest


def _box(first: int, members: int, size: int, tile: int, keys: bool) -> int:
    """Length of a box; `box_of` in triton_lattice.py."""
    last = min(first + tile, members) - 1
    if keys:
        start, end = (min(max(rank - size // 2, 0), members - size) for rank in (first, last))
        return end + size - start
    begin = 0 if first < size else first - size // 2
    return (members if last >= members - size else last + size // 2 + 1) - begin


def positive(q: torch.Tensor, scale: float) -> tuple[torch.Tensor, float]:
    """Queries and a positive scale with the same logits, because the kernels use biases in units of the scale."""
    return (-q, -scale) if scale < 0 else (q, max(scale, 1e-20))


def readable(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors, or copies of them, with equal strides and the channels of a head contiguous."""
    if tensors[0].stride(-1) == 1 and len({t.stride() for t in tensors}) == 1:
        return tensors
    return tuple(t.clone(memory_format=torch.contiguous_format) for t in tensors)
