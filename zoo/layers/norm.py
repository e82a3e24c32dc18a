"""Normalisation over the channels of (..., C) tensors."""

from __future__ import annotations

import torch
from torch import nn

from zoo.config import Norm
from zoo.layers.conv import Conv2d
from zoo.layers.linear import Linear


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of (B, H, W, C); statistics, keys and momentum (0.1) as `nn.BatchNorm2d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift, x, scale).to(x.dtype)

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift of each channel in evaluation mode, in float32 or wider."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        scale = self.weight.to(wide) * (self.running_var.to(wide) + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


def apply_norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """norm(x) of (B, H, W, C), also by a batch norm of NCHW that another library has put in place of ours.

    `SyncBatchNorm.convert_sync_batchnorm`, timm's and transformers' frozen batch norms do that.
    """
    if isinstance(norm, BatchNorm | nn.LayerNorm | nn.Identity):
        return norm(x)
    return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@torch.no_grad()
def fold_behind(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """Put the batch norm behind a convolution or linear layer into its weights; what is left of the norm."""
    if not isinstance(norm, BatchNorm):
        return norm
    weight, bias = _folded(conv, norm)
    conv.weight.copy_(weight)
    conv.bias = nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
    return nn.Identity()


@torch.no_grad()
def fold_before(norm: nn.Module, linear: Linear) -> nn.Module:
    """Put the batch norm of a linear layer's input into its weights; what is left of the norm."""
    if not isinstance(norm, BatchNorm):
        return norm
    scale, shift = norm.scale_and_shift()
    bias = linear.weight.to(shift.dtype) @ shift
    bias = bias if linear.bias is None else bias + linear.bias
    linear.weight.mul_(scale)
    linear.bias = nn.Parameter(bias.to(linear.weight.dtype), requires_grad=linear.weight.requires_grad)
    return nn.Identity()


def conv_norm(conv: Conv2d | Linear, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """norm(conv(x)); a batch norm in evaluation mode is folded into the convolution's weights.

    Compiled, a spatial convolution is left alone: the norm is then fused with the activation behind it, while a
    kernel computed in the graph loses its channels_last strides and makes oneDNN copy the map. So is one whose
    weights are more numbers than its input.
    """
    spatial = isinstance(conv, Conv2d) and (torch.compiler.is_compiling() or conv.weight.numel() > x.numel())
    if norm.training or spatial or not isinstance(norm, BatchNorm):
        return apply_norm(norm, conv(x))
    return conv.apply_weight(x, *_folded(conv, norm))


def _folded(conv: nn.Module, norm: BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution or linear layer with the batch norm behind it, in evaluation mode."""
    scale, shift = norm.scale_and_shift()
    weight = conv.weight * scale.view(-1, *(1,) * (conv.weight.ndim - 1))
    bias = shift if conv.bias is None else torch.addcmul(shift, conv.bias, scale)
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def build_norm(norm: Norm | None, dim: int) -> nn.Module:
    """The layer that `norm` describes, over `dim` channels; the identity for None."""
    if norm is None:
        return nn.Identity()
    cls = {"layernorm": nn.LayerNorm, "batchnorm": BatchNorm}[norm.type]
    return cls(dim, eps=norm.eps)
