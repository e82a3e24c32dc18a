"""Normalisation over the channels of (B, H, W, C) tensors."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

from zoo.config.model import Norm


class FoldableNorm(nn.BatchNorm2d):
    """The batch norms that `is_foldable` finds, for type checkers."""

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: torch.Tensor
    running_var: torch.Tensor


def build_norm(norm: Norm | None, dim: int) -> nn.Module:
    """The layer that `norm` describes, over `dim` channels; the identity for None."""
    if norm is None:
        return nn.Identity()
    cls = {"layernorm": nn.LayerNorm, "batchnorm": nn.BatchNorm2d}[norm.type]
    return cls(dim, eps=norm.eps)


def apply_norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """norm(x) of (B, H, W, C), even if another library has replaced the norm.

    Layer norms act on the last axis. Batch norms expect NCHW, and so do their replacements: synchronised and frozen
    batch norms, group norms.
    """
    if isinstance(norm, (nn.LayerNorm, nn.Identity)) or hasattr(_inside(norm), "normalized_shape"):
        return norm(x)
    return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def norm_maps(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """norm(x) of (B, C, H, W)."""
    return apply_norm(norm, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _inside(norm: nn.Module) -> nn.Module:
    """The layer inside an adapter."""
    while isinstance(inner := getattr(norm, "base_layer", None), nn.Module):
        norm = inner
    return norm


def scale_and_shift(norm: FoldableNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of each channel in evaluation mode, in float32 or wider."""
    wide = torch.promote_types(norm.weight.dtype, torch.float32)
    scale = norm.weight.to(wide) * (norm.running_var.to(wide) + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def is_foldable(norm: nn.Module) -> TypeGuard[FoldableNorm]:
    """Whether `norm` is a batch norm with statistics, a scale and a shift."""
    return type(norm) is nn.BatchNorm2d and norm.running_mean is not None and norm.weight is not None


def folded(layer: nn.Linear | nn.Conv2d, norm: FoldableNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution or linear layer with the batch norm after it, in evaluation mode."""
    scale, shift = scale_and_shift(norm)
    weight = layer.weight * scale.view(-1, *(1,) * (layer.weight.ndim - 1))
    bias = shift if layer.bias is None else torch.addcmul(shift, layer.bias, scale)
    return weight.to(layer.weight.dtype), bias.to(layer.weight.dtype)


@torch.no_grad()
def fold_after(layer: nn.Linear | nn.Conv2d, norm: nn.Module) -> nn.Module:
    """Fold the batch norm after a convolution or linear layer into its weights. Returns what remains of the norm."""
    if not is_foldable(norm):
        return norm
    weight, bias = folded(layer, norm)
    layer.weight.copy_(weight)
    layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
    return nn.Identity()


@torch.no_grad()
def fold_before(norm: nn.Module, linear: nn.Linear) -> nn.Module:
    """Fold the batch norm of a linear layer's input into its weights. Returns what remains of the norm."""
    if not is_foldable(norm):
        return norm
    scale, shift = scale_and_shift(norm)
    bias = linear.weight.to(shift.dtype) @ shift
    bias = bias if linear.bias is None else bias + linear.bias
    linear.weight.mul_(scale)
    linear.bias = nn.Parameter(bias.to(linear.weight.dtype), requires_grad=linear.weight.requires_grad)
    return nn.Identity()
