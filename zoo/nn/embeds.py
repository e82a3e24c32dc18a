"""Embeds: the first part of a stage, which sets its resolution; the stem is the embed of stage 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from zoo.config.model import Norm, Part
from zoo.config.schema import Count, Index, dataclass_from_yaml
from zoo.errors import Where
from zoo.kernels import deform_conv
from zoo.kernels.sizes import pad_to_least, pad_to_multiple
from zoo.nn.layers import cpu
from zoo.nn.layers.activations import ACTIVATIONS, Act
from zoo.nn.layers.conv import convolve, least_padding
from zoo.nn.layers.norm import apply_norm, build_norm, fold_after
from zoo.nn.parts import Embed
from zoo.nn.registry import EMBEDS


@dataclass(frozen=True)
class ConvLayer:
    """One convolution of an embed: conv, then norm, then activation."""

    kernel: Count
    stride: Count = 1
    dilation: Count = 1
    padding: Index | Literal["same"] | None = None
    dim: Count | None = None
    bias: bool = True
    norm: Norm | None = None
    act: Act | None = None

    @classmethod
    def from_yaml(cls, value: Any, where: Where) -> ConvLayer:
        return dataclass_from_yaml(cls, value, where)

    def build(self, dim_in: int, dim: int) -> nn.Conv2d:
        """The convolution; without explicit padding it keeps the size of the map, apart from the stride."""
        padding = self.dilation * (self.kernel // 2) if self.padding is None else self.padding
        if padding == "same":
            padding = least_padding(self.kernel, self.stride)
        return nn.Conv2d(dim_in, dim, self.kernel, self.stride, padding, self.dilation, bias=self.bias)


@EMBEDS.register("conv")
class ConvEmbed(Embed):
    """A chain of convolutions on (B, H, W, dim_in).

    Args:
        layers: the convolutions in order; `dim` of a layer is its width, by default that of the stage.
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
        self.convs = nn.ModuleList(layer.build(a, b) for a, b, layer in zip(widths, widths[1:], layers, strict=False))
        self.norms = nn.ModuleList(build_norm(layer.norm, b) for b, layer in zip(widths[1:], layers, strict=True))
        self.acts = [None if layer.act is None else ACTIVATIONS.get(layer.act) for layer in layers]
        self.same = [layer.padding == "same" for layer in layers]
        padding = layers[0].padding
        self.least = max(1, layers[0].kernel - 2 * padding) if isinstance(padding, int) else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, dim_in) to (B, H / reduction, W / reduction, dim), rounded according to kernels and padding.

        A map smaller than the first kernel is padded with zeros.
        """
        x = pad_to_multiple(apply_norm(self.pre_norm, x), (self.pad_to, self.pad_to))
        x = pad_to_least(x, (self.least, self.least))
        for conv, norm, act, same in zip(self.convs, self.norms, self.acts, self.same, strict=True):
            x = cpu.conv_norm(conv, norm, x, act, same)
        return x

    @staticmethod
    def input_convolutions(params: Mapping[str, Any]) -> tuple[str, ...]:
        """The convolutions that see the input."""
        return ("convs.0",)

    @staticmethod
    def dilated(params: Mapping[str, Any], dilation: int, strided: bool) -> Mapping[str, Any] | None:
        """The same for centred convolutions."""
        layers = []
        for layer in params["layers"]:
            if layer["kernel"] % 2 == 0 or "padding" in layer:
                return None
            stride = layer.get("stride", 1)
            layers.append({**layer, "dilation": dilation, "stride": stride if strided else 1})
            dilation *= 1 if strided else stride
        return {**params, "layers": layers}

    def fold(self) -> None:
        """Fold batch norms into the preceding convolutions."""
        pairs = zip(self.convs, self.norms, strict=True)
        self.norms = nn.ModuleList([fold_after(cast(nn.Conv2d, conv), norm) for conv, norm in pairs])


@EMBEDS.register("cross_scale")
class CrossScaleEmbed(Embed):
    """Convolutions of several kernels side by side (CrossFormer, https://arxiv.org/abs/2108.00154, section 3.1).

    The i-th gives dim / 2**(i+1) channels and the last one the rest, so small kernels provide most of the output.

    Args:
        kernels: of the convolutions, each even and no smaller than `stride`.
        stride: of all of them.
        norm: norm of the output.
        pre_norm: norm of the input.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        *,
        kernels: tuple[Count, ...],
        stride: Count,
        norm: Norm | None = None,
        pre_norm: Norm | None = None,
    ) -> None:
        super().__init__()
        if not kernels or any(k < stride or (k - stride) % 2 for k in kernels):
            raise ValueError(f"kernels {kernels} cannot be centred on steps of {stride}")
        widths = [dim // 2 ** (i + 1) for i in range(len(kernels))]
        widths[-1] = dim - sum(widths[:-1])
        self.dim, self.reduction, self.kernels = dim, stride, kernels
        self.pre_norm = build_norm(pre_norm, dim_in)
        self.convs = nn.ModuleList(
            nn.Conv2d(dim_in, width, k, stride, (k - stride) // 2) for k, width in zip(kernels, widths, strict=True)
        )
        self.norm = build_norm(norm, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, dim_in) to (B, H // stride, W // stride, dim); a smaller map is padded to one step."""
        x = pad_to_least(apply_norm(self.pre_norm, x), (self.reduction, self.reduction))
        maps = [convolve(conv, x, kernel) for conv, kernel in zip(self.convs, self.kernels, strict=True)]
        return apply_norm(self.norm, torch.cat(maps, dim=-1))

    @staticmethod
    def input_convolutions(params: Mapping[str, Any]) -> tuple[str, ...]:
        """The convolutions that see the input."""
        return tuple(f"convs.{i}" for i in range(len(params["kernels"])))


@EMBEDS.register("patch_merging")
class PatchMerging(Embed):
    """2x2 positions become one: their channels side by side, norm, linear (Swin, arXiv:2103.14030, section 3.1).

    An odd map is padded with zeros. Channels are ordered top left, bottom left, top right, bottom right.
    """

    reduction = 2

    def __init__(self, dim_in: int, dim: int, *, norm: Norm) -> None:
        super().__init__()
        self.dim = dim
        self.norm = build_norm(norm, 4 * dim_in)
        self.proj = nn.Linear(4 * dim_in, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, dim_in) to (B, ceil(H / 2), ceil(W / 2), dim)."""
        x = pad_to_multiple(x, (2, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return cpu.linear(self.proj, apply_norm(self.norm, x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class DeformConv2d(nn.Module):
    """A convolution of (B, dim_in, H, W) whose taps read at positions shifted by offsets; initialised like `nn.Conv2d`.

    Deformable ConvNets, https://arxiv.org/abs/1703.06211.
    """

    def __init__(self, dim_in: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        drawn = nn.Conv2d(dim_in, dim, kernel, stride)
        self.stride = stride
        self.weight, self.bias = drawn.weight, drawn.bias

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """x (B, dim_in, H, W) and offset (B, 2 * kernel ** 2, h, w), as for torchvision's, to (B, dim, h, w)."""
        x, offset = x.permute(0, 2, 3, 1), offset.permute(0, 2, 3, 1)
        return deform_conv(x, offset, self.weight, self.bias, self.stride).permute(0, 3, 1, 2)


@EMBEDS.register("deform")
class DeformEmbed(Embed):
    """2x2 deformable convolution of stride 2, norm, activation (LITv2's token merging, arXiv:2105.14217, section 3.3).

    The offsets come from an ordinary convolution of the same shape that starts at zero.
    """

    reduction = 2

    def __init__(self, dim_in: int, dim: int, *, norm: Norm, act: Act) -> None:
        super().__init__()
        self.dim = dim
        self.offset = nn.Conv2d(dim_in, 8, 2, 2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.get_parameter("bias"))
        self.conv = DeformConv2d(dim_in, dim, 2, 2)
        self.norm = build_norm(norm, dim)
        self.act = ACTIVATIONS[act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, dim_in) to (B, H // 2, W // 2, dim); a smaller map is padded to one step."""
        x = pad_to_least(x, (2, 2))
        offset = convolve(self.offset, x)
        x = self.conv(x.permute(0, 3, 1, 2), offset.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.act(apply_norm(self.norm, x))

    @staticmethod
    def input_convolutions(params: Mapping[str, Any]) -> tuple[str, ...]:
        """The convolutions that see the input."""
        return ("conv", "offset")

    def fold(self) -> None:
        """Fold a batch norm into the preceding convolution."""
        self.norm = fold_after(cast(nn.Conv2d, self.conv), self.norm)  # whose weights it has


def input_convolutions(embed: Part | None) -> tuple[str, ...]:
    """Names, inside an embed, of the convolutions applied to its input; none if there are no such convolutions."""
    if embed is None:
        return ()
    cls = EMBEDS.find(embed.type, embed.where / "type")
    return cls.input_convolutions(embed.params) if isinstance(cls, type) and issubclass(cls, Embed) else ()
