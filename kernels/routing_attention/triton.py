"""Routing attention on a GPU: keys and values are read in place, following the routes; see README.md."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.routing_attention.triton_backward import backward
from zoo.kernels.routing_attention.triton_lists import log_counts
from zoo.kernels.routing_attention.triton_tiles import (
    LOG2E,
    attention_logits,
    listed_rows,
    offsets,
    on_map,
    program,
    read,
    readable,
    rows,
    tiling,
    write,
)

__all__ = ["backward", "forward"]


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: list[int], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `operator.forward`."""
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:4], dtype=torch.float32)
    q, k, v, routes = readable(q), readable(k), readable(v), routes.contiguous()
    batch, height, width, heads, _ = q.shape
    plan = tiling(q, routes, region)
    choice = log_counts(routes, plan.table, q.dtype) if plan.dense else routes
    strides = (*q.stride()[:4], *k.stride()[:4], *v.stride()[:4])
    sizes = (height, width, plan.table)
    grid = (batch * plan.tiles * heads,)
    launch(_forward, grid, q, k, v, choice, out, lse, scale, *strides, *sizes, **plan.constants)
    return out, lse


@triton.jit
def _forward(
    q, k, v, choice, out, lse, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h, height, width, table,
    REGION_H: tl.constexpr, REGION_W: tl.constexpr, COLUMNS: tl.constexpr, REGIONS: tl.constexpr, TOPK: tl.constexpr,
    HEADS: tl.constexpr, TILES: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, STEPS: tl.constexpr,
    DENSE: tl.constexpr,
    INSIDE: tl.constexpr, FULL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = REGION_H * REGION_W
    head, tile, image = program(tl.program_id(0), TILES, HEADS)
    region, token, exists = rows(tile, REGIONS, TOKENS, OWN, DENSE)
    inside = on_map(region, token, exists, height, width, REGION_H, REGION_W, COLUMNS, INSIDE)
    own = offsets(region, token, q_y, q_x, REGION_H, REGION_W, COLUMNS)
    queries = read(q + image * q_b + head * q_h, own, inside, D, BLOCK_D)
    k += image * k_b + head * k_h
    v += image * v_b + head * v_h
    choice += image * REGIONS * table if DENSE else (image * REGIONS + region) * TOPK

    largest = tl.full([OWN], -1e30, tl.float32)  # finite: a tile may hold no key of a query
    total = tl.zeros([OWN], tl.float32)
    mean = tl.zeros([OWN, BLOCK_D], tl.float32)
    for step in range(STEPS):
        other, other_token, listed = listed_rows(step, choice, REGIONS if DENSE else TOPK, TOKENS, OTHER, DENSE)
        there = on_map(other, other_token, listed, height, width, REGION_H, REGION_W, COLUMNS, INSIDE)
        keys = read(k, offsets(other, other_token, k_y, k_x, REGION_H, REGION_W, COLUMNS), there, D, BLOCK_D)
        values = read(v, offsets(other, other_token, v_y, v_x, REGION_H, REGION_W, COLUMNS), there, D, BLOCK_D)
        logits = attention_logits(
            queries, keys, scale, choice, table, region, exists, step, listed,
            TOKENS, OWN, OTHER, DENSE, FULL, PRECISION,
        )  # fmt: skip
        larger = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp2(logits - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        mean = mean * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        largest = larger

    total = tl.where(exists, total, 1.0)
    pixel = (
        image * height * width * HEADS
        + head
        + offsets(region, token, width * HEADS, HEADS, REGION_H, REGION_W, COLUMNS)
    )
    write(out, mean * (1.0 / total)[:, None], pixel * D, inside, D, BLOCK_D)
    tl.store(lse + pixel, (largest + tl.log2(total)) / LOG2E, mask=inside)
