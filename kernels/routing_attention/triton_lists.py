"""Inverts routes: by which regions, and how often, each region was chosen."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.routing_attention.triton_tiles import UNIT
from zoo.kernels.sizes import ceil_div

GROUP: tl.constexpr = tl.constexpr(64)
"""The maximum number of regions of an image that one program sorts."""


def log_counts(routes: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """How often each region chose another, (B, regions, columns), as logarithms to base 2 in units of UNIT.

    Columns after the last region count as never chosen.
    """
    batch, regions, topk = routes.shape
    out = routes.new_empty((batch, regions, columns), dtype=dtype)
    never = -60000.0 if dtype == torch.float16 else -1e26
    launch(_log_counts, (batch * regions * ceil_div(columns, 64),), routes, out, columns, topk, never, num_warps=1)
    return out


def choosers(routes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The regions that chose region 0, then those that chose region 1 ..., (B, regions * topk), and a list of work.

    Work is (B * groups, regions of a group, 3): a region, and the start and length of its list, longest first; padding
    has region -1.
    """
    batch, regions, topk = routes.shape
    groups = ceil_div(regions, GROUP.value)
    size = ceil_div(regions, groups)
    lists = routes.new_empty((batch, regions * topk), dtype=torch.int32)
    work = routes.new_empty((batch * groups, size, 3), dtype=torch.int32)
    blocks = ceil_div(regions * topk, GROUP.value)
    launch(_choosers, (batch * blocks,), routes, lists, work, regions, topk, groups, size, blocks, num_warps=8)
    return lists, work


@triton.jit
def _log_counts(routes, out, columns, topk, never):
    blocks = tl.cdiv(columns, 64)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    others = tl.program_id(0) % blocks * 64 + tl.arange(0, 64)
    counts = tl.zeros([64], tl.int32)
    for begin in range(0, topk, 16):
        rank = begin + tl.arange(0, 16)
        chosen = tl.load(routes + row * topk + rank, mask=rank < topk, other=-1).to(tl.int32)
        counts += tl.sum((others[:, None] == chosen[None, :]).to(tl.int32), 1)
    logs = tl.where(counts > 0, tl.log2(tl.maximum(counts, 1).to(tl.float32)) / UNIT, never)
    tl.store(out + row * columns + others, logs.to(out.dtype.element_ty), mask=others < columns)


@triton.jit
def _choosers(routes, lists, work, regions, topk, groups, size, blocks):
    """Sort a block of an image's entries by their place among all, and the regions of a group, if there is one."""
    block, image = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    entries, number = regions * topk, tl.arange(0, GROUP)
    routes += image * entries
    mine = block * GROUP + number
    own = tl.load(routes + mine, mask=mine < entries, other=0).to(tl.int32)
    place = tl.zeros([GROUP], tl.int32)
    for begin in range(0, entries, GROUP):
        entry, chosen = _chosen(routes, begin, entries, number)
        place += _count(chosen[None, :] < own[:, None] + (entry[None, :] < mine[:, None]).to(tl.int32))
    tl.store(lists + image * entries + place, mine // topk, mask=mine < entries)

    if block < groups:
        region = block * size + number
        region = tl.where((number < size) & (region < regions), region, -1)
        first = tl.zeros([GROUP], tl.int32)
        length = tl.where(region < 0, -1, 0)
        for begin in range(0, entries, GROUP):
            _, chosen = _chosen(routes, begin, entries, number)
            first += _count(chosen[None, :] < region[:, None])
            length += _count(chosen[None, :] == region[:, None])
        order, others = length[:, None], length[None, :]
        rank = _count((others > order) | ((others == order) & (number[None, :] < number[:, None])))
        record = work + ((image * groups + block) * size + rank) * 3
        tl.store(record, region, mask=number < size)
        tl.store(record + 1, first, mask=number < size)
        tl.store(record + 2, length, mask=number < size)


@triton.jit
def _chosen(routes, begin, entries, number):
    """The next entries of an image's routes; after the end, a region larger than all others."""
    entry = begin + number
    return entry, tl.load(routes + entry, mask=entry < entries, other=2**31 - 1).to(tl.int32)


@triton.jit
def _count(condition):
    return tl.sum(condition.to(tl.int32), 1)
