"""Routing attention on a GPU: keys and values are read where they lie, by the routes; see README.md."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.routing_attention.triton_backward import backward
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

__all__ = ["backward", "forward"]


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: list[int], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `operator.forward`."""
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:4], dtype=torch.float32)
    q, k, v = map(readable, (q, k, v))
    plan = tiling(q, routes, region)
    choice = log_counts(routes.contiguous()) if plan.dense else routes.contiguous()
    strides = [n for t in (q, k, v) for n in t.stride()[:4]]
    launch(
        _forward,
        (q.shape[0] * plan.tiles * q.shape[3],),
        *(q, k, v, choice, out, lse, scale, *strides, *map_arguments(q, routes, region, plan)),
        **plan.options(q),
    )
    return out, lse


@triton.jit
def _forward(
    q, k, v, choice, out, lse, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, region_height, region_width, columns, regions, topk, tiles,
    OWN: tl.constexpr, OTHER: tl.constexpr, DENSE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head, tile, image = program(tl.program_id(0), tiles, heads)
    tokens = region_height * region_width
    region, token, exists = own_rows(tile, regions, tokens, OWN, DENSE)
    y, x, inside = on_map(region, token, exists, height, width, region_height, region_width, columns)
    queries = read(q, image, y, x, head, q_b, q_y, q_x, q_h, inside, D, BLOCK_D)
    choice, positions = keys_of(choice, image, region, regions, topk, tokens, DENSE)

    largest = tl.full([OWN], -1e30, tl.float32)  # finite: a tile may hold no key of a query
    total = tl.zeros([OWN], tl.float32)
    mean = tl.zeros([OWN, BLOCK_D], tl.float32)
    for begin in range(0, positions, OTHER):
        other, other_token, listed = listed_rows(begin, positions, choice, tokens, OTHER, DENSE)
        key_y, key_x, there = on_map(other, other_token, listed, height, width, region_height, region_width, columns)
        keys = read(k, image, key_y, key_x, head, k_b, k_y, k_x, k_h, there, D, BLOCK_D)
        values = read(v, image, key_y, key_x, head, v_b, v_y, v_x, v_h, there, D, BLOCK_D)
        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * LOG2E)
        # keys beyond the map are zeros, but they do take part: listed, not there
        logits = attended(logits, choice, region, exists, other, listed, regions, DENSE)
        larger = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp2(logits - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        mean = mean * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        largest = larger

    total = tl.where(exists, total, 1.0)
    pixel, origin = y * width + x, image * height * width * heads + head
    write(out + origin * D, mean / total[:, None], pixel, inside, heads, D, BLOCK_D)
    tl.store(lse + origin + pixel * heads, (largest + tl.log2(total)) / LOG2E, mask=inside)
