"""The classifier on top of a backbone."""

from __future__ import annotations

import torch
from torch import nn

from zoo.config.model import HeadConfig
from zoo.nn.layers.norm import build_norm

POOLS = ("avg", "")


class Head(nn.Module):
    """Global pool, norm (if it follows the pool), optional tanh layer, dropout, classifier.

    Works on (B, dim, H, W). Without a pool every position is classified.

    Attributes:
        hidden_dim: width of the features that `fc` sees.
    """

    def __init__(self, config: HeadConfig, dim: int, num_classes: int, pool: str, drop_rate: float) -> None:
        super().__init__()
        self.hidden_dim = dim
        self.norm = build_norm(config.norm, dim) if config.order == "pool_norm" else nn.Identity()
        self.pre_logits = nn.Linear(dim, dim) if config.pre_logits else None
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool)

    def reset(self, num_classes: int, pool: str | None = None) -> None:
        """A new classifier for `num_classes`, none for 0; `pool` is "avg", or "" for no pool."""
        if pool is not None:
            if pool not in POOLS:
                raise ValueError(f"global_pool is {pool!r}, expected 'avg', or '' for none")
            self.pool = pool
        self.fc = nn.Linear(self.hidden_dim, num_classes) if num_classes > 0 else nn.Identity()

    def remove_hidden(self) -> None:
        """Remove the norm and the tanh layer, keeping the pool and the classifier."""
        self.norm, self.pre_logits = nn.Identity(), None

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, dim, H, W) to (B, num_classes), or to the (B, hidden_dim) features before the classifier.

        Without a pool to (B, num_classes, H, W) or (B, hidden_dim, H, W).
        """
        x = x.permute(0, 2, 3, 1)
        if self.pool == "avg":
            x = x.mean(dim=(1, 2))
        x = self.norm(x)
        if self.pre_logits is not None:
            x = self.pre_logits(x).tanh()
        x = self.drop(x)
        x = x if pre_logits else self.fc(x)
        return x.permute(0, 3, 1, 2) if x.ndim == 4 else x
