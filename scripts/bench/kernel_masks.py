"""The attention operations of `zoo.kernels` computed with PyTorch's attention over a whole map, with mask and bias.

flex_attention takes both as functions of positions. Positions are ordered by their groups (dilated maps), windows or
regions, so that it can skip blocks of pairs. scaled_dot_product_attention takes both as one tensor of all pairs. A
builder takes a case, the number of images and the device, and returns a function of the operation's tensors by name, or
None if it cannot express the case.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from zoo.kernels.neighborhood_attention.reference import neighbors
from zoo.kernels.partition import partition, unpartition

Function = Callable[..., torch.Tensor]
MOST_PAIRS = 2**30
"""Above this number of query-key pairs no tensor of all pairs is made."""
MOST_SEQUENCES = 2**16 - 1
"""The most that SDPA supports at once on some GPUs."""


def _heads_first(x: torch.Tensor) -> torch.Tensor:
    """(B, H, W, heads, d) to (B, heads, H * W, d)."""
    return x.flatten(1, 2).transpose(1, 2)


def _map(x: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The inverse of `_heads_first`."""
    return x.transpose(1, 2).unflatten(1, shape)


def _compiled_flex() -> Function:
    """flex_attention compiled, and nothing with it: on the CPU it does not compile with views of inputs."""
    return torch.compile(flex_attention, dynamic=False)


def _block_mask(sees: Callable, queries: int, keys: int, device: str) -> BlockMask:
    """The blocks of pairs that hold one that `sees`; of large maps without a tensor of all pairs on the way."""
    make = torch.compile(create_block_mask, dynamic=False) if queries * keys > 2**24 else create_block_mask
    return make(sees, None, None, queries, keys, device=device)


class Lattice:
    """The positions of a map in the order of their groups: which sees which, and the bias of a pair."""

    def __init__(self, case, device: str) -> None:
        (height, width), (self.h, self.w), dilation = case.shape, case.size, case.dilation
        y, x = (n.flatten() for n in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
        group = (y % dilation[0]) * dilation[1] + x % dilation[1]
        self.order = group.argsort(stable=True).to(device)
        self.inverse = self.order.argsort()
        self.group, y, x = (n.to(device)[self.order].to(torch.int32) for n in (group, y, x))
        sides = (case.shape, case.size, dilation)
        starts = [neighbors(n, s, d, device)[0][:, 0] // d for n, s, d in zip(*sides, strict=True)]
        self.first_y, self.first_x = starts[0][y].to(torch.int32), starts[1][x].to(torch.int32)
        self.y, self.x = y // dilation[0], x // dilation[1]
        self.grouped = dilation != (1, 1)

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Whether a query attends to a key."""
        down, right = self.y[key] - self.first_y[query], self.x[key] - self.first_x[query]
        inside = (down >= 0) & (down < self.h) & (right >= 0) & (right < self.w)
        return inside & (self.group[query] == self.group[key])

    def entry(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The table index of a pair's bias; arbitrary for pairs that do not see each other."""
        down = self.y[key] - self.y[query] + self.h - 1
        right = self.x[key] - self.x[query] + self.w - 1
        return down.clamp(0, 2 * self.h - 2), right.clamp(0, 2 * self.w - 2)

    def line_up(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, heads, d) to (B, heads, H * W, d) in this order."""
        x = x.flatten(1, 2)
        return (x[:, self.order] if self.grouped else x).transpose(1, 2)

    def back(self, x: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """The inverse of `line_up`."""
        x = x.transpose(1, 2)
        return (x[:, self.inverse] if self.grouped else x).unflatten(1, shape)


def _flex_neighborhood(case, batch: int, device: str) -> Function:
    lattice, tokens = Lattice(case, device), case.shape[0] * case.shape[1]
    mask = _block_mask(lambda b, h, i, j: lattice.sees(i, j), tokens, tokens, device)

    attention = _compiled_flex()

    def call(q, k, v, bias=None):
        def biased(score, b, h, i, j):
            down, right = lattice.entry(i, j)
            return score + bias[h, down, right]

        q, k, v = map(lattice.line_up, (q, k, v))
        out = attention(q, k, v, score_mod=None if bias is None else biased, block_mask=mask)
        return lattice.back(out, case.shape)

    return call


def _sdpa_neighborhood(case, batch: int, device: str) -> Function | None:
    tokens = case.shape[0] * case.shape[1]
    if case.heads * tokens**2 > MOST_PAIRS:
        return None
    lattice, own = Lattice(case, device), torch.arange(tokens, device=device)
    query, key = own[:, None].expand(-1, tokens), own[None].expand(tokens, -1)
    seen, (down, right) = lattice.sees(query, key), lattice.entry(query, key)

    def call(q, k, v, bias=None):
        mask = seen if bias is None else bias[:, down, right].masked_fill(~seen, float("-inf"))[None]
        q, k, v = map(lattice.line_up, (q, k, v))
        return lattice.back(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), case.shape)

    return call


def _in_pieces(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """SDPA on no more sequences at once than a grid of its kernels has blocks."""
    masks = repeat(None) if mask is None else mask.split(MOST_SEQUENCES)
    pieces = zip(*(t.split(MOST_SEQUENCES) for t in (q, k, v)), masks, strict=False)
    return torch.cat([F.scaled_dot_product_attention(*qkv, attn_mask=some) for *qkv, some in pieces])


def _gathered_neighborhood(case, batch: int, device: str) -> Function:
    sides = [neighbors(n, s, d, device) for n, s, d in zip(case.shape, case.size, case.dilation, strict=True)]
    (rows, down), (columns, right) = sides
    keys = (rows[:, None, :, None] * case.shape[1] + columns[None, :, None]).flatten(0, 1).flatten(1)

    def call(q, k, v, bias=None):
        k, v = (t.flatten(1, 2)[:, keys].flatten(0, 1).transpose(1, 2) for t in (k, v))
        mask = None
        if bias is not None:
            mask = bias[:, down[:, None, :, None], right[None, :, None]].flatten(3).flatten(1, 2)
            mask = mask.transpose(0, 1)[:, :, None].repeat(len(q), 1, 1, 1)
        out = _in_pieces(q.flatten(0, 2)[:, :, None], k, v, mask)
        return out[:, :, 0].view(q.shape)

    return call


def _flex_window(case, batch: int, device: str) -> Function | None:
    """Only for maps that the groups fill."""
    if any(n % (s * i) for n, s, i in zip(case.shape, case.size, case.interval, strict=True)):
        return None

    attention = _compiled_flex()

    def call(q, k, v, bias=None):
        def biased(score, b, h, i, j):
            return score + bias[h, i, j]

        groups = [partition(t, case.size, case.interval) for t in (q, k, v)]
        q, k, v = (t.flatten(0, 1).transpose(1, 2) for t in groups)
        out = attention(q, k, v, score_mod=None if bias is None else biased).transpose(1, 2)
        return unpartition(out.unflatten(0, groups[0].shape[:2]), case.size, case.interval, case.shape)

    return call


def _allowed(routes: torch.Tensor) -> torch.Tensor:
    """(B, regions, regions): which regions a region is routed to."""
    regions = routes.shape[1]
    return torch.zeros(len(routes), regions, regions, dtype=torch.bool, device=routes.device).scatter_(2, routes, True)


def _fills(case) -> bool:
    """Whether regions fill the map."""
    return not any(n % r for n, r in zip(case.shape, case.region, strict=True))


def _by_region(x: torch.Tensor, case) -> torch.Tensor:
    """(B, H, W, heads, d) to (B, heads, H * W, d), region by region."""
    return partition(x, case.region, (1, 1)).flatten(1, 2).transpose(1, 2)


def _from_regions(x: torch.Tensor, case) -> torch.Tensor:
    """The inverse of `_by_region`."""
    x = x.transpose(1, 2).unflatten(1, (-1, case.region[0] * case.region[1]))
    return unpartition(x, case.region, (1, 1), case.shape)


def _flex_routing(case, batch: int, device: str) -> Function | None:
    """The mask depends on the routes, so it is rebuilt in every call."""
    if not _fills(case):
        return None
    tokens, area = case.shape[0] * case.shape[1], case.region[0] * case.region[1]
    attention, make_mask = _compiled_flex(), torch.compile(create_block_mask, dynamic=False)

    def call(q, k, v, routes):
        allowed = _allowed(routes)

        def sees(b, h, i, j):
            return allowed[b, i // area, j // area]

        mask = make_mask(sees, len(q), None, tokens, tokens, device=device)
        q, k, v = (_by_region(t, case) for t in (q, k, v))
        return _from_regions(attention(q, k, v, block_mask=mask), case)

    return call


def _sdpa_routing(case, batch: int, device: str) -> Function | None:
    if not _fills(case) or batch * (case.shape[0] * case.shape[1]) ** 2 > MOST_PAIRS:
        return None
    area = case.region[0] * case.region[1]

    def call(q, k, v, routes):
        mask = _allowed(routes).repeat_interleave(area, 1).repeat_interleave(area, 2)[:, None]
        q, k, v = (_by_region(t, case) for t in (q, k, v))
        return _from_regions(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), case)

    return call


def _tap(case, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether a key lies in the window of a query, and as which tap."""
    width, radius = case.shape[1], case.size // 2
    down = key // width - query // width + radius
    right = key % width - query % width + radius
    inside = (down >= 0) & (down < case.size) & (right >= 0) & (right < case.size)
    return inside, (down * case.size + right).clamp(0, case.size**2 - 1)


def _after_softmax(case, v: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
    """What `extra` adds: a sum over the window, beyond what attention kernels can express."""
    (height, width), radius = case.shape, case.size // 2
    wide = F.pad(v, (0, 0, 0, 0, *(radius,) * 4))
    steps = [(i, j) for i in range(case.size) for j in range(case.size)]
    return sum(extra[..., n, None] * wide[:, i : i + height, j : j + width] for n, (i, j) in enumerate(steps))


def _flex_aggregated(case, batch: int, device: str) -> Function:
    tokens, pooled = case.shape[0] * case.shape[1], case.pooled[0] * case.pooled[1]

    def sees(b, h, i, j):
        return (j >= tokens) | _tap(case, i, j)[0]

    mask = _block_mask(sees, tokens, tokens + pooled, device)
    attention = _compiled_flex()

    def call(q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra):
        def biased(score, b, h, i, j):
            near, far = local_bias[h, _tap(case, i, j)[1]], pooled_bias[h, i, (j - tokens).clamp(min=0)]
            return score + torch.where(j < tokens, near, far)

        keys, values = (torch.cat([_heads_first(a), _heads_first(b)], 2) for a, b in ((k, pooled_k), (v, pooled_v)))
        out = attention(_heads_first(q), keys, values, score_mod=biased, block_mask=mask, scale=1.0)
        return _map(out, case.shape) + _after_softmax(case, v, extra)

    return call


def _sdpa_aggregated(case, batch: int, device: str) -> Function | None:
    tokens = case.shape[0] * case.shape[1]
    if case.heads * tokens**2 > MOST_PAIRS:
        return None
    own = torch.arange(tokens, device=device)
    inside, taps = _tap(case, own[:, None], own[None])

    def call(q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra):
        near = local_bias[:, taps].masked_fill(~inside, float("-inf"))
        keys, values = (torch.cat([_heads_first(a), _heads_first(b)], 2) for a, b in ((k, pooled_k), (v, pooled_v)))
        mask = torch.cat([near, pooled_bias], 2)[None]
        out = F.scaled_dot_product_attention(_heads_first(q), keys, values, attn_mask=mask, scale=1.0)
        return _map(out, case.shape) + _after_softmax(case, v, extra)

    return call


FLEX = {
    "aggregated_attention": _flex_aggregated,
    "neighborhood_attention": _flex_neighborhood,
    "routing_attention": _flex_routing,
    "window_attention": _flex_window,
}
SDPA = {
    "aggregated_attention": _sdpa_aggregated,
    "neighborhood_attention": _sdpa_neighborhood,
    "routing_attention": _sdpa_routing,
}
GATHERED = {"neighborhood_attention": _gathered_neighborhood}
"""SDPA on a copy of each query's own keys, which for windows and routed regions the reference itself is."""
