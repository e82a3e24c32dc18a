"""Bi-level routing attention (BiFormer): regions choose regions, and tokens attend to the tokens of the chosen ones."""

from __future__ import annotations

import torch

from zoo.kernels.backends import choose
from zoo.kernels.checks import LARGEST, as_pair, check_qkv, check_scale
from zoo.kernels.exporting import for_runtimes
from zoo.kernels.recording import recorded
from zoo.kernels.routing_attention import native, operator, reference, regionwise
from zoo.kernels.sizes import ceil_div
from zoo.kernels.watched import watched


@recorded
def routing_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    routes: torch.Tensor,
    region: int | tuple[int, int],
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale * q k^T) v over the tokens of the regions that the query's region is routed to.

    BiFormer, https://arxiv.org/abs/2303.08810, section 3.2. A map whose sides are not multiples of the region is padded
    at the right and the bottom with zeros, which take part as keys and values.

    Args:
        q, k, v: (B, H, W, heads, head_dim), any strides.
        routes: (B, regions, topk) indices of regions, row-major, as `region_routes` gives them.
        region: (height, width) of a region in positions, or one number for both.
        scale: factor of the logits; head_dim ** -0.5 when None.

    Returns:
        (B, H, W, heads, head_dim).

    Raises:
        ValueError: if shapes, dtypes or devices do not agree.
    """
    check_qkv(q, k, v)
    region = as_pair(region, "region", LARGEST)
    regions = ceil_div(q.shape[1], region[0]) * ceil_div(q.shape[2], region[1])
    if not isinstance(routes, torch.Tensor):
        raise ValueError(f"routes are a {type(routes).__name__}, expected a tensor")
    if routes.ndim != 3 or routes.shape[0] != q.shape[0] or routes.shape[1] != regions or not routes.shape[2] > 0:
        raise ValueError(f"routes are {tuple(routes.shape)}, expected ({q.shape[0]}, {regions}, topk)")
    if (
        routes.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        or routes.device != q.device
    ):
        raise ValueError(
            f"routes are {routes.dtype} on {routes.device}, expected integers on {q.device}, as q is there"
        )
    scale = check_scale(scale, q.shape[-1])
    if choose(q, native.limit(region, routes)) == "reference":
        if routes.device.type == "cpu" and not watched():
            native.check_routes(routes)
        form = regionwise if for_runtimes() else reference
        return form.routing_attention(q, k, v, routes.long(), region, scale)
    return operator.forward(q, k, v, routes, region, scale)[0]


def region_routes(q: torch.Tensor, k: torch.Tensor, region: int | tuple[int, int], topk: int) -> torch.Tensor:
    """The `topk` regions whose mean key is nearest to the mean query of each region, the best first.

    BiFormer, equations 3 to 5. Means leave out positions beyond the map; of equal scores, as rounded, the first region
    wins, so the choice is the same on every run. No gradient flows through it.

    Args:
        q, k: (B, H, W, heads, head_dim), any strides; one choice serves all heads.
        region: (height, width) of a region in positions, or one number for both.
        topk: number of regions to choose; all of them if there are fewer.

    Returns:
        (B, regions, topk) indices, row-major.

    Raises:
        ValueError: if shapes, dtypes or devices do not agree, or topk is not positive.
    """
    check_qkv(q, k, k)
    if not isinstance(topk, (int, torch.SymInt)) or topk < 1:
        raise ValueError(f"topk is {topk}, expected at least 1, an integer")
    return reference.region_routes(q, k, as_pair(region, "region", LARGEST), topk)


def region_scores(q: torch.Tensor, k: torch.Tensor, region: int | tuple[int, int]) -> torch.Tensor:
    """The products of mean queries and mean keys for all pairs of regions, by which `region_routes` chooses.

    Args:
        q, k: (B, H, W, heads, head_dim), any strides.
        region: (height, width) of a region in positions, or one number for both.

    Returns:
        (B, regions, regions), row-major, the region that chooses first; float32 at least.

    Raises:
        ValueError: if shapes, dtypes or devices do not agree.
    """
    check_qkv(q, k, k)
    return reference.region_scores(q, k, as_pair(region, "region", LARGEST))
