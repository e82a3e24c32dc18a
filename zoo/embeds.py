"""Embeds: what stands before the blocks of a stage and sets its resolution; the stem is the embed of stage 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from zoo.config import Norm
from zoo.errors import Where
from zoo.layers.activations import ACTIVATIONS, Act
from zoo.layers.conv import Conv2d, pad_to_multiple
from zoo.layers.norm import build_norm, conv_norm
from zoo.registry import EMBEDS
from zoo.schema import Count, Index, dataclass_from_yaml


@dataclass(frozen=True)
class ConvLayer:
    """One convolution of an embed: conv, then norm, then activation."""

    kernel: Count
    stride: Count = 1
    padding: Index | Literal["same"] | None = None
    dim: Count | None = None
    bias: bool = True
    norm: Norm | None = None
    act: Act | None = None

    @classmethod
    def from_yaml(cls, value: Any, where: Where) -> ConvLayer:
        return dataclass_from_yaml(cls, value, where)


@EMBEDS.register("conv")
class ConvEmbed(nn.Module):
    """A chain of convolutions on (B, H, W, dim_in).

    Args:
        layers: the convolutions in order; `dim` of a layer is its width, the stage's width when not given.
        pre_norm: norm of the input.
        pad_to: the input is zero-padded at the right and the bottom, after `pre_norm`, to a multiple of this.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        *,
        layers: tuple[ConvLayer, ...],
        pre_norm: Norm | None = None,
        pad_to: Count = 1,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("layers is empty, at least one convolution is needed")
        widths = [dim_in, *(layer.dim or dim for layer in layers)]
        self.dim = widths[-1]
        self.reduction = math.prod(layer.stride for layer in layers)
        self.pad_to = pad_to
        self.pre_norm = build_norm(pre_norm, dim_in)
        self.convs = nn.ModuleList(
            Conv2d(a, b, layer.kernel, layer.stride, layer.padding, layer.bias)
            for a, b, layer in zip(widths, widths[1:], layers, strict=False)
        )
        self.norms = nn.ModuleList(build_norm(layer.norm, b) for b, layer in zip(widths[1:], layers, strict=True))
        self.acts = [ACTIVATIONS.get(layer.act) for layer in layers]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, dim_in) to (B, ceil(H / reduction), ceil(W / reduction), dim)."""
        x = pad_to_multiple(self.pre_norm(x), (self.pad_to, self.pad_to))
        for conv, norm, act in zip(self.convs, self.norms, self.acts, strict=True):
            x = conv_norm(conv, norm, x)
            x = x if act is None else act(x)
        return x
