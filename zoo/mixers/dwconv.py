"""Depthwise convolution as a branch: DaViT's conditional position encoding."""

from __future__ import annotations

from zoo.layers.conv import Conv2d
from zoo.registry import BRANCHES
from zoo.schema import Count


@BRANCHES.register("dwconv")
class DepthwiseConv(Conv2d):
    """A zero-padded depthwise convolution with bias on (B, H, W, dim)."""

    def __init__(self, dim: int, *, kernel: Count = 3) -> None:
        super().__init__(dim, dim, kernel, groups=dim)
