"""Shared by the Triton kernels of window attention: the positions of a tile's rows, and how they are read.

Everything that depends on a group's place in its image is computed once per program, which then goes through images.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
UNSEEN = tl.constexpr(-1e30)
"""The logit of a masked pair: finite, so that a query without any key still has a softmax, though a meaningless one."""


COUNTS = (
    "height", "width", "heads", "interval_y", "interval_x", "across",
    "groups", "tiles", "tiles_x", "places", "span", "images", "batch",
)  # fmt: skip
"""Kernel arguments for which no variants are compiled."""


@triton.jit
def share(number, heads, places, images, batch):
    """Head, place and images of a program; the heads of a place are neighbours, as they are in memory."""
    head, item = number % heads, number // heads
    first = item // places * images
    return head, item % places, first, tl.minimum(first + images, batch)


@triton.jit
def wide_share(number, heads, places, span, images, batch):
    """Head, first and last of `span` places, and images of a program."""
    head, item = number % heads, number // heads
    shares = tl.cdiv(places, span)
    begin, first = item % shares * span, item // shares * images
    return head, begin, tl.minimum(begin + span, places), first, tl.minimum(first + images, batch)


@triton.jit
def origin(group, across, interval_y, interval_x, SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr):
    """Row and column of the first token of groups."""
    down, right = group // across, group % across
    top = down // interval_y * SIZE_Y * interval_y + down % interval_y
    return top, right // interval_x * SIZE_X * interval_x + right % interval_x


@triton.jit
def on_axis(first, length, interval):
    """How many of the pixels `first`, `first + interval`, ... lie on an axis of that length; may be negative."""
    return (length - first + interval - 1) // interval


@triton.jit
def on_map(
    token, top, left, height, width, interval_y, interval_x,
    SIZE_Y: tl.constexpr, SIZE_X: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Which tokens exist and are on the map itself; if `WHOLE`, all that exist are on it."""
    inside = token < SIZE_Y * SIZE_X
    if not WHOLE:  # rows and columns are counted: comparing every y and x would multiply for each pair of tokens
        inside &= token // SIZE_X < on_axis(top, height, interval_y)
        inside &= token % SIZE_X < on_axis(left, width, interval_x)
    return inside


@triton.jit
def rows_of(token, top, left, interval_y, interval_x, t_y, t_x, SIZE_X: tl.constexpr, ALIGN: tl.constexpr):
    """Offsets of the tokens of groups in an image whose rows and columns are `t_y` and `t_x` apart."""
    first = top * t_y + left * t_x
    rows = first + token // SIZE_X * (interval_y * t_y) + token % SIZE_X * (interval_x * t_x)
    return tl.multiple_of(rows, ALIGN)


@triton.jit
def read(t, image, rows, head, inside, t_b, t_h, D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr):
    """A head's channels at the rows of an image, zeros where not `inside`."""
    channel = tl.arange(0, BLOCK_D)
    start = tl.multiple_of(tl.cast(image, tl.int64) * t_b + head * t_h, ALIGN)
    return tl.load(t + start + rows[:, None] + channel[None, :], mask=inside[:, None] & (channel < D), other=0.0)


@triton.jit
def first_pixel(image, height, width):
    """The number of the first pixel of an image."""
    return tl.cast(image, tl.int64) * height * width


@triton.jit
def places_of(t, start, pixel, head, heads, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Pointers into a contiguous map, at the pixels of a tile."""
    return t + (start * heads + head) * D + (pixel * heads * D)[:, None] + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def read_map(t, start, pixel, head, heads, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """`read`, from a contiguous map."""
    mask = inside[:, None] & (tl.arange(0, BLOCK_D) < D)
    return tl.load(places_of(t, start, pixel, head, heads, D, BLOCK_D), mask=mask, other=0.0)


@triton.jit
def write_map(t, rows, start, pixel, head, heads, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write a tile to a contiguous map."""
    mask = inside[:, None] & (tl.arange(0, BLOCK_D) < D)
    tl.store(places_of(t, start, pixel, head, heads, D, BLOCK_D), rows.to(t.dtype.element_ty), mask=mask)


@triton.jit
def weights_of(logits, log):
    """The exponentials of logits minus `log`, one number per row."""
    return tl.exp2(logits * LOG2E - (log * LOG2E)[:, None])


@triton.jit
def weights_and_dlogits(
    queries, keys, values, change, log, delta, pairs, there, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The softmax of a tile of pairs, and the gradient of its logits; `pairs` may be None."""
    logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
    if pairs is not None:
        logits += pairs
    if MASKED:
        logits = tl.where(there[None, :], logits, UNSEEN)
    weights = weights_of(logits, log)
    return weights, weights * (tl.dot(change, tl.trans(values), input_precision=PRECISION) - delta[:, None])
