"""Relative position bias of attention inside a window of h x w tokens.

Every module gives a (heads, h*w, h*w) bias from a table of the (2h-1) x (2w-1) offsets, indexed
[key - query + size - 1] on each axis: NATTEN's and TensorFlow MaxViT's order, the reverse of Swin's.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class PositionBias(nn.Module):
    """The gather from offsets to pairs of tokens that all position biases share."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("index", offset_index(size), persistent=False)

    def offsets(self) -> torch.Tensor:
        """The bias of every offset, (heads, (2h-1) * (2w-1))."""
        raise NotImplementedError

    def forward(self) -> torch.Tensor:
        """The bias of every pair, (heads, queries, keys)."""
        tokens = self.size[0] * self.size[1]
        return self.offsets().index_select(1, self.index).unflatten(1, (tokens, tokens))


class TableBias(PositionBias):
    """A learned table (heads, 2h-1, 2w-1), drawn from a normal distribution of std 0.02."""

    def __init__(self, heads: int, size: tuple[int, int]) -> None:
        super().__init__(size)
        self.table = nn.Parameter(torch.empty(heads, 2 * size[0] - 1, 2 * size[1] - 1))
        nn.init.trunc_normal_(self.table, std=0.02)

    def offsets(self) -> torch.Tensor:
        return self.table.flatten(1)


class MlpBias(PositionBias):
    """A two-layer network of the log-spaced offset (Swin V2, https://arxiv.org/abs/2111.09883, section 3.3).

    The coordinate is sign(d) ln(1 + |d|) of the integer offset d = query - key; in training a fraction 0.125 of
    the hidden layer is dropped. The weights do not depend on the window, so they serve every size unchanged.
    """

    HIDDEN, DROP = 512, 0.125

    def __init__(self, heads: int, size: tuple[int, int]) -> None:
        super().__init__(size)
        self.fc1 = nn.Linear(2, self.HIDDEN)
        self.fc2 = nn.Linear(self.HIDDEN, heads)
        self.register_buffer("coordinates", log_offsets(size), persistent=False)

    def offsets(self) -> torch.Tensor:
        hidden = F.dropout(F.relu(self.fc1(self.coordinates)), self.DROP, self.training)
        return self.fc2(hidden).t()


def offset_index(size: tuple[int, int]) -> torch.Tensor:
    """For each (query, key) pair, query-major, the flat index of key - query in the (2h-1, 2w-1) table; (N*N,)."""
    rows, columns = (torch.arange(n)[None, :] - torch.arange(n)[:, None] + n - 1 for n in size)
    index = rows[:, None, :, None] * (2 * size[1] - 1) + columns[None, :, None, :]
    return index.flatten()


def log_offsets(size: tuple[int, int]) -> torch.Tensor:
    """sign(d) ln(1 + |d|) of d = query - key for each entry of the table, ((2h-1) * (2w-1), 2)."""
    axes = [torch.arange(n - 1, -n, -1, dtype=torch.float32) for n in size]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    return offsets.sign() * offsets.abs().log1p()
