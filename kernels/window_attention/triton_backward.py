"""The gradients of window attention on a GPU, without atomics; see README.md."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo.kernels.launch import launch
from zoo.kernels.sizes import steps
from zoo.kernels.window_attention.triton_groups import (
    LOG2E,
    bias_of,
    first_pixel,
    geometry,
    is_whole,
    locate,
    packed_bias,
    packed_groups,
    packed_rows,
    program,
    read,
    read_map,
    readable,
    strides_of,
    tiling,
    tokens_within,
    write_map,
)

PROGRAMS = 2048
"""Enough to keep a large GPU busy: beyond, a program takes several tiles."""


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    size: list[int],
    interval: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `biased_operator`."""
    gradients = [q.new_empty(q.shape) for _ in range(3)]
    q, k, v = map(readable, (q, k, v))
    table = None if bias is None else bias.to(q.dtype).contiguous()
    arguments = [q, k, v, table, grad.contiguous(), out.contiguous(), lse.contiguous()]
    numbers = [scale, *strides_of(q, k, v), *geometry(q, size, interval)]
    plan = tiling(q, size[0] * size[1], backward=True)
    options = plan.options(q, k, v, size)
    if plan.packed:
        options["WHOLE"] = is_whole(q, size, interval)
    partial = (_packed if plan.packed else _cut)(arguments, gradients, numbers, options)
    return *gradients, q.new_empty(0) if bias is None else partial.sum(0).to(bias.dtype)


def _chunk(q: torch.Tensor, tokens: int, items: int, programs: int) -> int:
    """How many of `items` a program sums the bias's gradient over: so many that sums are no larger than q in all."""
    return max(1, items // max(1, programs), steps(4 * tokens, q.shape[-1] * q.element_size()))


def _packed(arguments: list, gradients: list, numbers: list, options: dict) -> torch.Tensor | None:
    """Everything in one kernel; the partial sums of the bias's gradient."""
    q, bias, groups = arguments[0], arguments[3], numbers[-1]
    tokens, heads = options["SIZE_Y"] * options["SIZE_X"], q.shape[3]
    slots = options["OWN"] // tokens
    tiles = steps(groups, slots)
    total = q.shape[0] * tiles
    chunk = _chunk(q, 0 if bias is None else tokens, total, PROGRAMS // heads)
    chunks = steps(total, chunk)
    partial = None if bias is None else bias.new_empty((chunks * slots, *bias.shape), dtype=torch.float32)
    grid = (chunks * heads,)
    launch(_backward_packed, grid, *arguments, *gradients, partial, *numbers, tiles, total, chunk, **options)
    return partial


def _cut(arguments: list, gradients: list, numbers: list, options: dict) -> torch.Tensor | None:
    """A kernel for queries, one for keys and values, one for the bias; the partial sums of the bias's gradient."""
    q, bias, lse, (dq, dk, dv) = arguments[0], arguments[3], arguments[-1], gradients
    tokens, heads, items = options["SIZE_Y"] * options["SIZE_X"], q.shape[3], q.shape[0] * numbers[-1]
    tiles, tiles_x = steps(tokens, options["OWN"]), steps(tokens, options["OTHER"])
    delta = torch.empty_like(lse)
    grid = (items * tiles * heads,)
    launch(_backward_queries, grid, *arguments, delta, dq, *numbers, tiles, **options)
    arguments = [*arguments[:5], lse, delta]
    launch(_backward_keys, grid, *arguments, dk, dv, *numbers, tiles, **options)
    if bias is None:
        return None
    chunk = _chunk(q, tokens, items, PROGRAMS // (heads * tiles * tiles_x))
    chunks = steps(items, chunk)
    partial = bias.new_empty((chunks, *bias.shape), dtype=torch.float32)
    grid = (chunks * tiles * tiles_x * heads,)
    options["num_stages"] = 1
    launch(_backward_bias, grid, *arguments, partial, *numbers, tiles, tiles_x, items, chunk, **options)
    return partial


@triton.jit
def weights_of(product, scale, pairs, log):
    """The softmax of logits whose logarithms of sums, to base e, are known."""
    return tl.exp2(product * (scale * LOG2E) + pairs - (log * LOG2E)[:, None])


@triton.jit(do_not_specialize=["height", "width", "heads", "across", "groups", "tiles", "total", "chunk"])
def _backward_packed(
    q, k, v, bias, grad, out, lse, dq, dk, dv, partial, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, interval_y, interval_x, across, groups, tiles, total, chunk,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, OWN: tl.constexpr, WHOLE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = SIZE_Y * SIZE_X
    head, item = program(tl.program_id(0), heads)
    slot, token, whole = packed_rows(OWN, TOKENS)
    pairs = packed_bias(bias, head, slot, token, whole, TOKENS)
    if bias is not None:
        sums = tl.zeros([OWN, OWN], tl.float32)
    for tile in range(item * chunk, tl.minimum((item + 1) * chunk, total)):
        image = tile // tiles
        group, exists = packed_groups(tile % tiles, slot, whole, groups, OWN, TOKENS)
        y, x, inside = locate(group, token, exists, height, width, interval_y, interval_x, across, SIZE_Y, SIZE_X)
        start, pixel = first_pixel(image, height, width), y * width + x
        queries = read(q, image, y, x, head, inside, q_b, q_y, q_x, q_h, D, BLOCK_D, ALIGN)
        keys = read(k, image, y, x, head, inside, k_b, k_y, k_x, k_h, D, BLOCK_D, ALIGN)
        values = read(v, image, y, x, head, inside, v_b, v_y, v_x, v_h, D, BLOCK_D, ALIGN)
        change = read_map(grad, start, pixel, head, heads, inside, D, BLOCK_D)
        result = read_map(out, start, pixel, head, heads, inside, D, BLOCK_D)
        log = tl.load(lse + start * heads + head + pixel * heads, mask=inside, other=float("inf"))
        delta = tl.sum(result.to(tl.float32) * change.to(tl.float32), 1)

        weights = weights_of(tl.dot(queries, tl.trans(keys), input_precision="ieee"), scale, pairs, log)
        if not WHOLE:
            weights = tl.where(inside[None, :], weights, 0.0)
        dvalues = tl.dot(tl.trans(weights.to(change.dtype)), change, input_precision="ieee")
        write_map(dv, dvalues, start, pixel, head, heads, inside, D, BLOCK_D)
        dlogits = weights * (tl.dot(change, tl.trans(values), input_precision="ieee") - delta[:, None])
        if bias is not None:
            sums += dlogits
        dlogits = dlogits.to(keys.dtype)
        dqueries = tl.dot(dlogits, keys, input_precision="ieee") * scale
        write_map(dq, dqueries, start, pixel, head, heads, inside, D, BLOCK_D)
        dkeys = tl.dot(tl.trans(dlogits), queries, input_precision="ieee") * scale
        write_map(dk, dkeys, start, pixel, head, heads, inside, D, BLOCK_D)
    if bias is not None:
        table = (item * (OWN // TOKENS) + slot).to(tl.int64) * heads + head
        cells = (table * TOKENS + token)[:, None] * TOKENS + token[None, :]
        tl.store(partial + cells, sums, mask=(slot[:, None] == slot[None, :]) & whole[:, None])


@triton.jit(do_not_specialize=["height", "width", "heads", "across", "groups", "tiles"])
def _backward_queries(
    q, k, v, bias, grad, out, lse, delta, dq, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, interval_y, interval_x, across, groups, tiles,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    head, item = program(tl.program_id(0), heads)
    group, image = item // tiles % groups, item // tiles // groups
    count = tokens_within(group, height, interval_y, across, SIZE_Y, SIZE_X)
    token = item % tiles * OWN + tl.arange(0, OWN)
    y, x, inside = locate(
        group, token, token < SIZE_Y * SIZE_X, height, width, interval_y, interval_x, across, SIZE_Y, SIZE_X
    )
    start, pixel = first_pixel(image, height, width), y * width + x
    queries = read(q, image, y, x, head, inside, q_b, q_y, q_x, q_h, D, BLOCK_D, ALIGN)
    change = read_map(grad, start, pixel, head, heads, inside, D, BLOCK_D)
    result = read_map(out, start, pixel, head, heads, inside, D, BLOCK_D)
    offset = tl.sum(result.to(tl.float32) * change.to(tl.float32), 1)
    tl.store(delta + start * heads + head + pixel * heads, offset, mask=inside)
    log = tl.load(lse + start * heads + head + pixel * heads, mask=inside, other=float("inf"))

    dqueries = tl.zeros([OWN, BLOCK_D], tl.float32)
    for begin in range(0, count, OTHER):
        key = begin + tl.arange(0, OTHER)
        at_y, at_x, there = locate(
            group, key, key < SIZE_Y * SIZE_X, height, width, interval_y, interval_x, across, SIZE_Y, SIZE_X
        )
        keys = read(k, image, at_y, at_x, head, there, k_b, k_y, k_x, k_h, D, BLOCK_D, ALIGN)
        values = read(v, image, at_y, at_x, head, there, v_b, v_y, v_x, v_h, D, BLOCK_D, ALIGN)
        pairs = bias_of(bias, head, token, key, inside[:, None] & there[None, :], there[None, :], SIZE_Y * SIZE_X)
        weights = weights_of(tl.dot(queries, tl.trans(keys), input_precision="ieee"), scale, pairs, log)
        dlogits = weights * (tl.dot(change, tl.trans(values), input_precision="ieee") - offset[:, None])
        dqueries = tl.dot(dlogits.to(keys.dtype), keys, dqueries, input_precision="ieee")
    write_map(dq, dqueries * scale, start, pixel, head, heads, inside, D, BLOCK_D)


@triton.jit(do_not_specialize=["height", "width", "heads", "across", "groups", "tiles"])
def _backward_keys(
    q, k, v, bias, grad, lse, delta, dk, dv, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, interval_y, interval_x, across, groups, tiles,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    head, item = program(tl.program_id(0), heads)
    group, image = item // tiles % groups, item // tiles // groups
    count = tokens_within(group, height, interval_y, across, SIZE_Y, SIZE_X)
    key = item % tiles * OWN + tl.arange(0, OWN)
    at_y, at_x, there = locate(
        group, key, key < SIZE_Y * SIZE_X, height, width, interval_y, interval_x, across, SIZE_Y, SIZE_X
    )
    start, place = first_pixel(image, height, width), at_y * width + at_x
    keys = read(k, image, at_y, at_x, head, there, k_b, k_y, k_x, k_h, D, BLOCK_D, ALIGN)
    values = read(v, image, at_y, at_x, head, there, v_b, v_y, v_x, v_h, D, BLOCK_D, ALIGN)

    dkeys = tl.zeros([OWN, BLOCK_D], tl.float32)
    dvalues = tl.zeros([OWN, BLOCK_D], tl.float32)
    for begin in range(0, count, OTHER):
        token = begin + tl.arange(0, OTHER)
        y, x, inside = locate(
            group, token, token < SIZE_Y * SIZE_X, height, width, interval_y, interval_x, across, SIZE_Y, SIZE_X
        )
        pixel = y * width + x
        queries = read(q, image, y, x, head, inside, q_b, q_y, q_x, q_h, D, BLOCK_D, ALIGN)
        change = read_map(grad, start, pixel, head, heads, inside, D, BLOCK_D)
        log = tl.load(lse + start * heads + head + pixel * heads, mask=inside, other=float("inf"))
        offset = tl.load(delta + start * heads + head + pixel * heads, mask=inside, other=0.0)
        pairs = bias_of(bias, head, token, key, inside[:, None] & there[None, :], there[None, :], SIZE_Y * SIZE_X)
        weights = weights_of(tl.dot(queries, tl.trans(keys), input_precision="ieee"), scale, pairs, log)
        dlogits = weights * (tl.dot(change, tl.trans(values), input_precision="ieee") - offset[:, None])
        dvalues = tl.dot(tl.trans(weights.to(change.dtype)), change, dvalues, input_precision="ieee")
        dkeys = tl.dot(tl.trans(dlogits.to(queries.dtype)), queries, dkeys, input_precision="ieee")
    write_map(dk, dkeys * scale, start, place, head, heads, there, D, BLOCK_D)
    write_map(dv, dvalues, start, place, head, heads, there, D, BLOCK_D)


@triton.jit(do_not_specialize=["height", "width", "heads", "across", "groups", "tiles", "tiles_x", "total", "chunk"])
def _backward_bias(
    q, k, v, bias, grad, lse, delta, partial, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, interval_y, interval_x, across, groups, tiles, tiles_x, total, chunk,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = SIZE_Y * SIZE_X
    head, item = program(tl.program_id(0), heads)
    token = item % tiles * OWN + tl.arange(0, OWN)
    key = item // tiles % tiles_x * OTHER + tl.arange(0, OTHER)
    item = item // tiles // tiles_x
    whole = (token < TOKENS)[:, None] & (key < TOKENS)[None, :]
    pairs = bias_of(bias, head, token, key, whole, whole, TOKENS)
    sums = tl.zeros([OWN, OTHER], tl.float32)
    for number in range(item * chunk, tl.minimum((item + 1) * chunk, total)):
        image, group = number // groups, number % groups
        y, x, inside = locate(
            group, token, token < TOKENS, height, width, interval_y, interval_x, across, SIZE_Y, SIZE_X
        )
        at_y, at_x, there = locate(
            group, key, key < TOKENS, height, width, interval_y, interval_x, across, SIZE_Y, SIZE_X
        )
        start, pixel = first_pixel(image, height, width), y * width + x
        queries = read(q, image, y, x, head, inside, q_b, q_y, q_x, q_h, D, BLOCK_D, ALIGN)
        keys = read(k, image, at_y, at_x, head, there, k_b, k_y, k_x, k_h, D, BLOCK_D, ALIGN)
        values = read(v, image, at_y, at_x, head, there, v_b, v_y, v_x, v_h, D, BLOCK_D, ALIGN)
        change = read_map(grad, start, pixel, head, heads, inside, D, BLOCK_D)
        log = tl.load(lse + start * heads + head + pixel * heads, mask=inside, other=float("inf"))
        offset = tl.load(delta + start * heads + head + pixel * heads, mask=inside, other=0.0)
        weights = weights_of(tl.dot(queries, tl.trans(keys), input_precision="ieee"), scale, pairs, log)
        weights = tl.where(there[None, :], weights, 0.0)
        sums += weights * (tl.dot(change, tl.trans(values), input_precision="ieee") - offset[:, None])
    cells = ((item.to(tl.int64) * heads + head) * TOKENS + token)[:, None] * TOKENS + key[None, :]
    tl.store(partial + cells, sums, mask=whole)
