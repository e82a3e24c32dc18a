"""Length-scaled cosine attention (TransNeXt, https://arxiv.org/abs/2311.17132, sections 3.1 and 3.3)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class CosineQuery(nn.Module):
    """Normalised queries to queries whose product with normalised keys is the logit.

    (q + embedding) * softplus(temperature) * log(keys): the temperature is learned per head and starts at 1 / 0.24.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.full((heads, 1), math.log(math.exp(1 / 0.24) - 1)))
        self.embedding = nn.Parameter(torch.empty(heads, head_dim))
        nn.init.trunc_normal_(self.embedding, std=0.02)

    def forward(self, q: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """q (B, H, W, heads, head_dim), and the number of keys that each position sees, (H, W) or (1, 1)."""
        return (q + self.embedding) * (F.softplus(self.temperature) * keys[..., None, None].log())
