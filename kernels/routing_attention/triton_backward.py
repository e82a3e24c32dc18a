"""Gradients of routing attention on a GPU: one pass by queries, one by keys and the regions that chose them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.routing_attention.triton_tiles import (
    LOG2E,
    attended,
    keys_of,
    listed_rows,
    log_counts,
    map_arguments,
    on_map,
    own_rows,
    program,
    read,
    readable,
    tiling,
    write,
)


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    routes: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    region: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `operator.backward`."""
    dq, dk, dv = (q.new_empty(q.shape) for _ in range(3))
    grad, q, k, v, out = map(readable, (grad, q, k, v, out))
    lse, delta = lse.contiguous(), torch.empty_like(lse, memory_format=torch.contiguous_format)
    strides = [n for t in (grad, q, k, v, out) for n in t.stride()[:4]]
    plan, routes = tiling(q, routes, region, backward=True), routes.contiguous()
    sizes = map_arguments(q, routes, region, plan)
    choice = log_counts(routes) if plan.dense else routes
    grid = (q.shape[0] * plan.tiles * q.shape[3],)
    launch(_queries, grid, grad, q, k, v, choice, out, lse, delta, dq, scale, *strides, *sizes, **plan.options(q))

    choosers, bounds = (choice, choice) if plan.dense else _inverse(routes)
    turns = 1 if plan.dense else 2
    arguments = (grad, q, k, v, choosers, bounds, lse, delta, dk, dv, scale, *strides[:16], *sizes)
    launch(_keys_values, (turns * grid[0],), *arguments, **plan.options(q))
    return dq, dk, dv


def _inverse(routes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The regions that chose region 0, then those that chose region 1 ..., and where the list of each begins."""
    batch, regions, topk = routes.shape
    chosen, order = routes.flatten(1).sort(dim=1, stable=True)
    numbers = torch.arange(regions + 1, device=routes.device).expand(batch, -1).contiguous()
    return order // topk, torch.searchsorted(chosen, numbers)


@triton.jit
def _queries(
    grad, q, k, v, choice, out, lse, delta, dq, scale,
    g_b, g_y, g_x, g_h, q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h, o_b, o_y, o_x, o_h,
    height, width, heads, region_height, region_width, columns, regions, topk, tiles,
    OWN: tl.constexpr, OTHER: tl.constexpr, DENSE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head, tile, image = program(tl.program_id(0), tiles, heads)
    tokens = region_height * region_width
    region, token, exists = own_rows(tile, regions, tokens, OWN, DENSE)
    y, x, inside = on_map(region, token, exists, height, width, region_height, region_width, columns)
    pixel, origin = y * width + x, image * height * width * heads + head
    queries = read(q, image, y, x, head, q_b, q_y, q_x, q_h, inside, D, BLOCK_D)
    grads = read(grad, image, y, x, head, g_b, g_y, g_x, g_h, inside, D, BLOCK_D)
    outs = read(out, image, y, x, head, o_b, o_y, o_x, o_h, inside, D, BLOCK_D)
    deltas = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    tl.store(delta + origin + pixel * heads, deltas, mask=inside)
    # a row beyond the map has no weights, whatever its logits
    sums = tl.load(lse + origin + pixel * heads, mask=inside, other=float("inf")) * LOG2E
    choice, positions = keys_of(choice, image, region, regions, topk, tokens, DENSE)

    result = tl.zeros([OWN, BLOCK_D], tl.float32)
    for begin in range(0, positions, OTHER):
        other, other_token, listed = listed_rows(begin, positions, choice, tokens, OTHER, DENSE)
        key_y, key_x, there = on_map(other, other_token, listed, height, width, region_height, region_width, columns)
        keys = read(k, image, key_y, key_x, head, k_b, k_y, k_x, k_h, there, D, BLOCK_D)
        values = read(v, image, key_y, key_x, head, v_b, v_y, v_x, v_h, there, D, BLOCK_D)
        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * LOG2E)
        # keys beyond the map have weights, but pull at no query: they are zeros
        logits = attended(logits, choice, region, exists, other, there, regions, DENSE)
        weights = tl.exp2(logits - sums[:, None])
        slopes = weights * (tl.dot(grads, tl.trans(values), input_precision="ieee") - deltas[:, None])
        result += tl.dot(slopes.to(keys.dtype), keys, input_precision="ieee")
    write(dq + origin * D, result * scale, pixel, inside, heads, D, BLOCK_D)


@triton.jit
def _keys_values(
    grad, q, k, v, choosers, bounds, lse, delta, dk, dv, scale,
    g_b, g_y, g_x, g_h, q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, region_height, region_width, columns, regions, topk, tiles,
    OWN: tl.constexpr, OTHER: tl.constexpr, DENSE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tokens = region_height * region_width
    if DENSE:
        head, tile, image = program(tl.program_id(0), tiles, heads)
        region, token, exists = own_rows(tile, regions, tokens, OWN, DENSE)
        choosers += image * regions * regions
        positions = regions * tokens
    else:
        # All programs are launched twice. In the first turn those work whose region was chosen far more often than the
        # average, so that the longest do not begin last and run alone; in the second turn all others.
        programs = tl.num_programs(0) // 2
        head, tile, image = program(tl.program_id(0) % programs, tiles, heads)
        region, token, exists = own_rows(tile, regions, tokens, OWN, DENSE)
        first = tl.load(bounds + image * (regions + 1) + region)
        choices = (tl.load(bounds + image * (regions + 1) + region + 1) - first).to(tl.int32)
        if (choices > 4 * topk) != (tl.program_id(0) < programs):
            return
        choosers += image * regions * topk + first
        positions = choices * tokens
    y, x, inside = on_map(region, token, exists, height, width, region_height, region_width, columns)
    keys = read(k, image, y, x, head, k_b, k_y, k_x, k_h, inside, D, BLOCK_D)
    values = read(v, image, y, x, head, v_b, v_y, v_x, v_h, inside, D, BLOCK_D)

    origin = image * height * width * heads + head
    key_slopes = tl.zeros([OWN, BLOCK_D], tl.float32)
    value_slopes = tl.zeros([OWN, BLOCK_D], tl.float32)
    for begin in range(0, positions, OTHER):
        other, other_token, listed = listed_rows(begin, positions, choosers, tokens, OTHER, DENSE)
        query_y, query_x, there = on_map(
            other, other_token, listed, height, width, region_height, region_width, columns
        )
        queries = read(q, image, query_y, query_x, head, q_b, q_y, q_x, q_h, there, D, BLOCK_D)
        grads = read(grad, image, query_y, query_x, head, g_b, g_y, g_x, g_h, there, D, BLOCK_D)
        pixel = (query_y * width + query_x) * heads
        sums = tl.load(lse + origin + pixel, mask=there, other=float("inf")) * LOG2E
        deltas = tl.load(delta + origin + pixel, mask=there, other=0.0)
        logits = tl.dot(keys, tl.trans(queries), input_precision="ieee") * (scale * LOG2E)
        if DENSE:
            pairs = other[None, :] * regions + region[:, None]
            chosen = exists[:, None] & there[None, :]
            logits += tl.load(choosers + pairs, mask=chosen, other=-float("inf"))
        weights = tl.exp2(logits - sums[None, :])
        value_slopes += tl.dot(weights.to(grads.dtype), grads, input_precision="ieee")
        slopes = weights * (tl.dot(values, tl.trans(grads), input_precision="ieee") - deltas[None, :])
        key_slopes += tl.dot(slopes.to(queries.dtype), queries, input_precision="ieee")

    pixel = y * width + x
    write(dk + origin * D, key_slopes * scale, pixel, inside, heads, D, BLOCK_D)
    write(dv + origin * D, value_slopes, pixel, inside, heads, D, BLOCK_D)
