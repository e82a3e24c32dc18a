"""Depthwise convolution as a branch: DaViT's conditional position encoding."""

from __future__ import annotations

from zoo.layers.conv import Conv2d
from zoo.registry import BRANCHES


@BRANCHES.register("dwconv")
class DepthwiseConv(Conv2d):
    """A zero-padded 3x3 depthwise convolution with bias on (B, H, W, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, groups=dim)
