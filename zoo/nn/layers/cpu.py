"""Shortcuts that are faster on a CPU than calling one layer after another, and the conditions for using them.

A module that is hooked, replaced or adapted must be called in the ordinary way, and its output must not be overwritten,
because others may keep it. Shortcuts are therefore taken only for bare layers in inference; anything else gets
`layer(x)`. The figures were measured on two cores of an EPYC with PyTorch 2.14.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard, cast

import torch
from torch import nn
from torch.nn import functional as F

from zoo.kernels.backends import infers_natively
from zoo.kernels.packed_linear.api import packed_mlp
from zoo.kernels.packed_linear.native import activate_
from zoo.kernels.watched import watched
from zoo.nn.layers.activations import Activation, gelu_tanh
from zoo.nn.layers.conv import convolve, pad_same, same_padding, zeros_beside
from zoo.nn.layers.hooks import all_are_hooked, is_hooked
from zoo.nn.layers.norm import FoldableNorm, apply_norm, folded, is_foldable, scale_and_shift
from zoo.nn.layers.packed import NAMES, Packed, PackedConv

MANY = 1024
"""The number of positions from which a linear layer is faster as a convolution."""

_KINDS = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm, nn.Identity)
_FORWARDS: dict[type[nn.Module], Callable[..., torch.Tensor]] = {kind: kind.forward for kind in _KINDS}
_IN_PLACE: dict[Activation, Activation] = {
    F.gelu: torch.ops.aten.gelu_,
    gelu_tanh: lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    F.silu: torch.ops.aten.silu_,
}


def linear(layer: nn.Module, x: torch.Tensor, act: Activation | None = None) -> torch.Tensor:
    """act(layer(x)) of a linear layer on (..., C)."""
    if isinstance(layer, PackedConv):
        return layer(x, act)
    if type(layer) is not nn.Linear or not bare(x, layer):
        return _activated(layer(x), act)
    return _activated(_product(x, layer.weight, layer.bias), act, in_place=True)


def mlp(first: nn.Module, second: nn.Module, x: torch.Tensor, act: Activation) -> torch.Tensor:
    """second(act(first(x))) of linear layers on (B, H, W, C); packed ones without the hidden layer in memory."""
    packed = [layer for layer in (first, second) if isinstance(layer, PackedConv) and not is_hooked(layer)]
    if len(packed) == 2 and act in NAMES and x.ndim == 4 and bare(x):
        one, two = packed
        return packed_mlp(x, one.packed, two.packed, one.outputs, two.outputs, NAMES[act])
    return linear(second, linear(first, x, act))


def linear_halves(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the second half of a linear layer's output channels.

    Computed as two products, both halves are contiguous, which saves a copy in the following convolution or product.
    """
    if isinstance(layer, PackedConv) and not is_hooked(layer):
        return layer.halves(x)
    if type(layer) is not nn.Linear or layer.bias is None or not bare(x, layer):
        first, second = layer(x).chunk(2, dim=-1)
        return first, second
    weights = zip(layer.weight.chunk(2), layer.bias.chunk(2), strict=True)
    first, second = (_product(x, weight, bias) for weight, bias in weights)
    return first, second


def conv(layer: nn.Module, x: torch.Tensor, act: Activation | None = None) -> torch.Tensor:
    """act(layer(x)) of a convolution on (B, H, W, C)."""
    if isinstance(layer, Packed):
        return layer(x, act)
    return _activated(convolve(layer, x), act, in_place=type(layer) is nn.Conv2d and bare(x, layer))


def conv_norm(
    layer: nn.Module, norm: nn.Module, x: torch.Tensor, act: Activation | None = None, same: bool = False
) -> torch.Tensor:
    """act(norm(layer(x))) of a convolution on (B, H, W, C), with TensorFlow's padding if `same`.

    A batch norm in evaluation mode becomes part of the kernel, as long as that is smaller than the map (2 of 12 ms of
    MaxViT's first block); so does the odd zero of the padding, without a padded copy of the map.
    """
    if isinstance(layer, Packed):
        x = pad_same(x, cast(nn.Conv2d, layer)) if same else x
        return (
            layer(x, act) if _is_nothing(norm) else _activated(apply_norm(norm, layer(x)), act, in_place=bare(x, norm))
        )
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or not bare(x, layer, norm):
        x = pad_same(x, cast(nn.Conv2d, layer)) if same else x  # what adapts a convolution has its sizes
        return _activated(apply_norm(norm, convolve(layer, x)), act)
    weight: torch.Tensor = layer.weight
    bias, padding, folds = layer.bias, layer.padding, False
    if _folds(norm) and weight.numel() <= x.numel():
        folds, (weight, bias) = True, folded(layer, norm)
    if same:
        (top, bottom), (left, right) = same_padding(x.shape[1:3], layer)
        weight = F.pad(weight, (right - left, 0, bottom - top, 0))
        above, beside = zeros_beside(layer)
        padding = (above + bottom, beside + right)
    maps = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, layer.stride, padding, layer.dilation, layer.groups)
    y = maps.permute(0, 2, 3, 1).contiguous()
    return _activated(y if folds else apply_norm(norm, y), act, in_place=True)


def linear_norm(layer: nn.Module, norm: nn.Module, x: torch.Tensor, act: Activation | None = None) -> torch.Tensor:
    """act(norm(layer(x))) of a linear layer on (B, H, W, C); a batch norm in evaluation mode becomes part of it."""
    if _is_nothing(norm):
        return linear(layer, x, act)
    if type(layer) is not nn.Linear or not _folds(norm) or not bare(x, layer, norm):
        return _activated(apply_norm(norm, layer(x)), act)
    return _activated(_product(x, *folded(layer, norm)), act, in_place=True)


def normed(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """norm(x) of (B, H, W, C)."""
    if not _folds(norm) or not bare(x, norm):
        return apply_norm(norm, x)
    scale, shift = scale_and_shift(norm)
    return torch.addcmul(shift, x, scale).to(x.dtype)


def multiply(x: torch.Tensor, gate: torch.Tensor, *readers: nn.Module) -> torch.Tensor:
    """x times a broadcast gate. The caller has just computed x and has passed it only to the modules `readers`."""
    unseen = bare(x) and not any(map(is_hooked, readers))
    return x.mul_(gate) if unseen and x.dtype == gate.dtype else x * gate


def in_parts(
    module: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, images: int | None
) -> torch.Tensor:
    """run(x) of `module`, of as many images at a time, unless someone looks at what is inside; None for all."""
    if images is None or not bare(x) or len(x) <= images or any(map(is_hooked, module.modules())):
        return run(x)
    return torch.cat([run(part) for part in x.split(images)])


def bare(x: torch.Tensor, *layers: nn.Module) -> bool:
    """Whether skipping the calls of `layers` changes nothing that anyone can observe: in inference on a CPU.

    False while gradients are recorded, a program is traced, or a transform or mode is active, and for layers with hooks
    or with a replaced forward or replaced parameters.
    """
    if torch.is_grad_enabled() or type(x) is not torch.Tensor or x.device.type != "cpu" or watched():
        return False
    return not all_are_hooked() and all(map(_is_plain, layers))


def _is_nothing(norm: nn.Module) -> bool:
    """Whether skipping the call of a norm changes nothing at all."""
    return type(norm) is nn.Identity and not all_are_hooked() and _is_plain(norm)


def _is_plain(layer: nn.Module) -> bool:
    kind, own = type(layer), layer.__dict__
    if _FORWARDS.get(kind) is not kind.forward or "forward" in own or is_hooked(layer):
        return False
    return all(p is None or (type(p) is nn.Parameter and p.device.type == "cpu") for p in own["_parameters"].values())


def _folds(norm: nn.Module) -> TypeGuard[FoldableNorm]:
    return is_foldable(norm) and not norm.training


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The linear layer as a 1x1 convolution, which adds the bias while writing the product.

    1.03 to 1.17 times as fast from a thousand positions on, and up to 2.5 times with an older MKL on an AMD CPU.
    """
    if x.ndim != 4 or x.dtype == torch.float64 or x.numel() < MANY * x.shape[3] or not x.is_contiguous():
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1).contiguous()


def _activated(x: torch.Tensor, act: Activation | None, in_place: bool = False) -> torch.Tensor:
    """In place, because a hidden layer is the largest tensor of most blocks, and new memory costs as much as `act`."""
    if act is None:
        return x
    if in_place and act in NAMES and x.is_contiguous() and infers_natively(x):
        return activate_(x, NAMES[act])
    return _IN_PLACE.get(act, act)(x) if in_place else act(x)
