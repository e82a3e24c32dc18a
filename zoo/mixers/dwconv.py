"""Depthwise convolution as a branch: conditional position encoding (DaViT, BiFormer), CrossFormer++'s cooling layer."""

from __future__ import annotations

from zoo.layers.conv import DepthwiseConv
from zoo.registry import BRANCHES


@BRANCHES.register("dwconv")
class DepthwiseBranch(DepthwiseConv):
    """A zero-padded 3x3 depthwise convolution with bias on (B, H, W, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
