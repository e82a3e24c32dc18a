"""The query, key and value projection that the attention mixers share."""

from __future__ import annotations

import torch
from torch import nn


class QkvLinear(nn.Linear):
    """(B, H, W, dim) to q, k, v of (B, H, W, heads, head_dim); rows ordered (q k v, heads, head_dim)."""

    def __init__(self, dim: int, head_dim: int) -> None:
        if dim % head_dim:
            raise ValueError(f"head_dim {head_dim} does not divide the width {dim}")
        super().__init__(dim, 3 * dim)
        self.heads, self.head_dim = dim // head_dim, head_dim

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return super().forward(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(-3)
