"""Normalisation over the channels of (..., C) tensors."""

from __future__ import annotations

import torch
from torch import nn

from zoo.config import Norm


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of (B, H, W, C); statistics, keys and momentum (0.1) as `nn.BatchNorm2d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def build_norm(norm: Norm | None, dim: int) -> nn.Module:
    """The layer that `norm` describes, over `dim` channels; the identity for None."""
    if norm is None:
        return nn.Identity()
    cls = {"layernorm": nn.LayerNorm, "batchnorm": BatchNorm}[norm.type]
    return cls(dim, eps=norm.eps)
