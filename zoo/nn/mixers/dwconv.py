"""Depthwise convolution as a branch: conditional position encoding (DaViT, BiFormer), CrossFormer++'s cooling layer."""

from __future__ import annotations

from torch import nn

from zoo.nn.layers.conv import depthwise
from zoo.nn.registry import BRANCHES


@BRANCHES.register("dwconv")
def depthwise_branch(dim: int) -> nn.Conv2d:
    """A zero-padded 3x3 depthwise convolution with bias."""
    return depthwise(dim)
