"""Gradients of routing attention on a GPU: one pass over queries, one over keys and the regions that chose them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.routing_attention.triton_lists import GROUP, choosers, log_counts
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
    grad, q, k, v, lse, routes = *map(readable, (grad, q, k, v)), lse.contiguous(), routes.contiguous()
    batch, height, width, heads, _ = q.shape
    plan = tiling(q, routes, region, backward=True)
    strides = (*grad.stride()[:4], *q.stride()[:4], *k.stride()[:4], *v.stride()[:4])
    sizes = (height, width, plan.table)
    choice = log_counts(routes, plan.table, q.dtype) if plan.dense else routes
    grid = (batch * plan.tiles * heads,)
    delta = lse  # if one pass is enough, no kernel touches it
    if not plan.single:
        out, delta = readable(out), torch.empty_like(lse)
        arguments = (grad, q, k, v, choice, out, lse, delta, dq, scale, *strides, *out.stride()[:4], *sizes)
        launch(_queries, grid, *arguments, **plan.constants)

    lists, work, groups, size = choice, choice, 0, 0
    if not plan.dense:
        lists, work = choosers(routes)
        groups, size = work.shape[:2]
        grid = (groups * size * (plan.tiles // routes.shape[1]) * heads,)
    arguments = (grad, q, k, v, lists, work, lse, delta, dq, dk, dv, scale, *strides, *sizes, groups, size)
    launch(_keys_values, grid, *arguments, **plan.constants, SINGLE=plan.single)
    return dq, dk, dv


@triton.jit
def _slopes(logits, grads, values, sums, deltas, SINGLE: tl.constexpr, PRECISION: tl.constexpr):
    """Weights of keys for queries, and derivatives of the loss by their logits, (queries, keys).

    SINGLE: all keys of a query are present.
    """
    weights = tl.exp2(logits - sums[:, None])
    slopes = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
    if SINGLE:
        deltas = tl.sum(weights * slopes, 1)
    return weights, weights * (slopes - deltas[:, None])


@triton.jit
def _queries(
    grad, q, k, v, choice, out, lse, delta, dq, scale,
    g_b, g_y, g_x, g_h, q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h, o_b, o_y, o_x, o_h,
    height, width, table,
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
    own = offsets(region, token, g_y, g_x, REGION_H, REGION_W, COLUMNS)
    grads = read(grad + image * g_b + head * g_h, own, inside, D, BLOCK_D)
    own = offsets(region, token, o_y, o_x, REGION_H, REGION_W, COLUMNS)
    outs = read(out + image * o_b + head * o_h, own, inside, D, BLOCK_D)
    deltas = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    pixel = (
        image * height * width * HEADS
        + head
        + offsets(region, token, width * HEADS, HEADS, REGION_H, REGION_W, COLUMNS)
    )
    tl.store(delta + pixel, deltas, mask=inside)
    # a row beyond the map has no weights, whatever its logits
    sums = tl.load(lse + pixel, mask=inside, other=float("inf")) * LOG2E
    k += image * k_b + head * k_h
    v += image * v_b + head * v_h
    choice += image * REGIONS * table if DENSE else (image * REGIONS + region) * TOPK

    result = tl.zeros([OWN, BLOCK_D], tl.float32)
    for step in range(STEPS):
        other, other_token, listed = listed_rows(step, choice, REGIONS if DENSE else TOPK, TOKENS, OTHER, DENSE)
        there = on_map(other, other_token, listed, height, width, REGION_H, REGION_W, COLUMNS, INSIDE)
        keys = read(k, offsets(other, other_token, k_y, k_x, REGION_H, REGION_W, COLUMNS), there, D, BLOCK_D)
        values = read(v, offsets(other, other_token, v_y, v_x, REGION_H, REGION_W, COLUMNS), there, D, BLOCK_D)
        logits = attention_logits(
            queries, keys, scale, choice, table, region, exists, step, listed,
            TOKENS, OWN, OTHER, DENSE, FULL, PRECISION,
        )  # fmt: skip
        slopes = _slopes(logits, grads, values, sums, deltas, False, PRECISION)[1]
        result += tl.dot(slopes.to(keys.dtype), keys, input_precision=PRECISION)
    write(dq, result * scale, pixel * D, inside, D, BLOCK_D)


@triton.jit
def _keys_values(
    grad, q, k, v, lists, work, lse, delta, dq, dk, dv, scale,
    g_b, g_y, g_x, g_h, q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, table, groups, size,
    REGION_H: tl.constexpr, REGION_W: tl.constexpr, COLUMNS: tl.constexpr, REGIONS: tl.constexpr, TOPK: tl.constexpr,
    HEADS: tl.constexpr, TILES: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, STEPS: tl.constexpr,
    DENSE: tl.constexpr,
    INSIDE: tl.constexpr, FULL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    SINGLE: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = REGION_H * REGION_W
    if DENSE:
        head, tile, image = program(tl.program_id(0), TILES, HEADS)
        region, token, exists = rows(tile, REGIONS, TOKENS, OWN, True)
        lists += image * REGIONS * table
        choices, steps = REGIONS, STEPS
    else:
        head = tl.program_id(0) % HEADS
        image, part, work = _ordered(work, tl.program_id(0) // HEADS, groups, size, TOKENS, OWN, REGIONS)
        tile = 0
        region = tl.load(work)
        if region < 0:
            return
        token = part * OWN + tl.arange(0, OWN)
        exists = token < TOKENS
        lists += image * REGIONS * TOPK + tl.load(work + 1)
        choices = tl.load(work + 2)
        steps = tl.cdiv(choices, OTHER // TOKENS) if TOKENS < OTHER else choices * tl.cdiv(TOKENS, OTHER)
    inside = on_map(region, token, exists, height, width, REGION_H, REGION_W, COLUMNS, INSIDE)
    own = offsets(region, token, k_y, k_x, REGION_H, REGION_W, COLUMNS)
    keys = read(k + image * k_b + head * k_h, own, inside, D, BLOCK_D)
    own = offsets(region, token, v_y, v_x, REGION_H, REGION_W, COLUMNS)
    values = read(v + image * v_b + head * v_h, own, inside, D, BLOCK_D)
    q += image * q_b + head * q_h
    grad += image * g_b + head * g_h
    origin = image * height * width * HEADS + head

    key_slopes = tl.zeros([OWN, BLOCK_D], tl.float32)
    value_slopes = tl.zeros([OWN, BLOCK_D], tl.float32)
    for step in range(steps):
        other, other_token, listed = listed_rows(step, lists, choices, TOKENS, OTHER, DENSE)
        there = on_map(other, other_token, listed, height, width, REGION_H, REGION_W, COLUMNS, INSIDE)
        queries = read(q, offsets(other, other_token, q_y, q_x, REGION_H, REGION_W, COLUMNS), there, D, BLOCK_D)
        grads = read(grad, offsets(other, other_token, g_y, g_x, REGION_H, REGION_W, COLUMNS), there, D, BLOCK_D)
        pixel = origin + offsets(other, other_token, width * HEADS, HEADS, REGION_H, REGION_W, COLUMNS)
        sums = tl.load(lse + pixel, mask=there, other=float("inf")) * LOG2E
        deltas = sums if SINGLE else tl.load(delta + pixel, mask=there, other=0.0)
        # slopes of keys that do not exist are not written, but they must not count among all of a query
        logits = attention_logits(
            queries, keys, scale, lists, table, other, listed, tile, exists,
            TOKENS, OTHER, OWN, DENSE, not SINGLE or OWN == TOKENS, PRECISION,
        )  # fmt: skip
        weights, slopes = _slopes(logits, grads, values, sums, deltas, SINGLE, PRECISION)
        weights, slopes = weights.to(keys.dtype), slopes.to(keys.dtype)
        value_slopes += tl.dot(tl.trans(weights), grads, input_precision=PRECISION)
        key_slopes += tl.dot(tl.trans(slopes), queries, input_precision=PRECISION)
        if SINGLE:
            pulls = tl.dot(slopes, keys, input_precision=PRECISION) * scale
            write(dq, pulls, pixel * D, there, D, BLOCK_D)

    pixel = origin + offsets(region, token, width * HEADS, HEADS, REGION_H, REGION_W, COLUMNS)
    write(dk, key_slopes * scale, pixel * D, inside, D, BLOCK_D)
    write(dv, value_slopes, pixel * D, inside, D, BLOCK_D)


@triton.jit
def _ordered(work, number, groups, size, TOKENS: tl.constexpr, OWN: tl.constexpr, REGIONS: tl.constexpr):
    """Image, part of a region, and entry in the list of work of a program.

    The longest of all images go first, so that none of them starts last and runs alone; the rest follow image by image,
    so that queries stay in the cache.
    """
    parts: tl.constexpr = (TOKENS + OWN - 1) // OWN
    item, part = number // parts, number % parts
    first = size // 8 + 1
    rest = tl.maximum(item - first * groups, 0)
    ahead = item < first * groups
    group = tl.where(ahead, item % groups, rest // tl.maximum(size - first, 1))
    rank = tl.where(ahead, item // groups, first + rest % tl.maximum(size - first, 1))
    image = (group // tl.cdiv(REGIONS, GROUP)).to(tl.int64)
    return image, part, work + (group.to(tl.int64) * size + rank) * 3
