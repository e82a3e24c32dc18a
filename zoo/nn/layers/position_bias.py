"""Relative position biases of attention.

Inside a window of h x w tokens a bias is a table of the (2h-1) x (2w-1) offsets, indexed
[key - query + size - 1] on each axis: NATTEN's and TensorFlow MaxViT's order, the reverse of Swin's.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from zoo.kernels.exporting import exporting
from zoo.kernels.per_size import per_size
from zoo.kernels.sizes import ceil_div, same
from zoo.nn.layers import cpu
from zoo.nn.layers.per_weights import per_weights

CACHED = 2**18
"""The number of hidden values computed at once on a CPU."""


def drawn_table(heads: int, size: tuple[int, int]) -> nn.Parameter:
    """A table (heads, 2h-1, 2w-1) for windows of (h, w), initialised from a normal distribution with std 0.02."""
    table = nn.Parameter(torch.empty(heads, 2 * size[0] - 1, 2 * size[1] - 1))
    nn.init.trunc_normal_(table, std=0.02)
    return table


class OffsetTable(nn.Module):
    """A learned table (heads, 2h-1, 2w-1) for windows of (h, w)."""

    def __init__(self, heads: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.table = drawn_table(heads, size)

    def forward(self) -> torch.Tensor:
        """The table."""
        return self.table


class PositionBias(nn.Module):
    """The gather from offsets to pairs of tokens, shared by all window biases."""

    def offsets(self, size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        """The bias of every offset in a window of `size`, (heads, (2h-1) * (2w-1))."""
        raise NotImplementedError

    def forward(self, size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        """The bias of every pair, (heads, queries, keys), with the device and dtype of the map `like`."""
        offsets = self.offsets(size, like)
        tokens = size[0] * size[1]
        return offsets.index_select(1, offset_index(*size, device=offsets.device)).unflatten(1, (tokens, tokens))


class TableBias(PositionBias):
    """An offset table, like `OffsetTable`, expanded to a bias of pairs.

    For a window of another size the table is resized bicubically, as Swin's and NAT's authors do.
    """

    def __init__(self, heads: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.table = drawn_table(heads, size)

    def offsets(self, size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        shape = (2 * size[0] - 1, 2 * size[1] - 1)
        if same(self.table.shape[1:], shape):
            return self.table.flatten(1)
        return F.interpolate(self.table[None], shape, mode="bicubic")[0].flatten(1)


class MlpBias(PositionBias):
    """A two-layer network of the log-spaced offset (Swin V2, https://arxiv.org/abs/2111.09883, section 3.3).

    The coordinate is sign(d) ln(1 + |d|) of the integer offset d = query - key; in training a fraction 0.125 of
    the hidden layer is dropped. The weights do not depend on the window, so they serve every size unchanged.
    """

    HIDDEN, DROP = 512, 0.125

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, self.HIDDEN)
        self.fc2 = nn.Linear(self.HIDDEN, heads)

    @per_weights
    def offsets(self, size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        offset = offset_table(*size, device=like.device)
        coordinates = offset.sign() * offset.abs().log1p()
        hidden = F.dropout(F.relu(self.fc1(coordinates.to(like.dtype))), self.DROP, self.training)
        return self.fc2(hidden).t()


class DynamicBias(PositionBias):
    """A network of the integer offset query - key (CrossFormer, https://arxiv.org/abs/2108.00154, section 3.3).

    One linear layer, then three times layer norm, ReLU and a linear layer, `hidden` wide.
    """

    def __init__(self, heads: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(2, hidden)
        widths = (hidden, hidden, heads)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, width)) for width in widths
        )

    @per_weights
    def offsets(self, size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        x = self.proj(offset_table(*size, device=like.device).to(like.dtype))
        for layer in self.layers:
            x = layer(x)
        return x.t()


@per_size
def offset_index(height: int, width: int, *, device: torch.device) -> torch.Tensor:
    """For each (query, key) pair, query-major, the flat index of key - query in the (2h-1, 2w-1) table; (N*N,)."""
    rows, columns = (
        torch.arange(n, device=device)[None, :] - torch.arange(n, device=device)[:, None] + n - 1
        for n in (height, width)
    )
    index = rows[:, None, :, None] * (2 * width - 1) + columns[None, :, None, :]
    return index.flatten()


@per_size
def offset_table(height: int, width: int, *, device: torch.device) -> torch.Tensor:
    """query - key of each entry of the table, ((2h-1) * (2w-1), 2), float32."""
    axes = [torch.arange(n - 1, -n, -1, dtype=torch.float32, device=device) for n in (height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


class PooledBias(nn.Module):
    """A network of the distance from every position to every pooled key (TransNeXt, arXiv:2311.17132, section 3.2).

    The coordinate is sign(d) log2(1 + |d|) / 3 of d = 8 (query - key) / (side of the pre-training map - 1).

    Args:
        heads: of the attention.
        pretrained: the (height, width) of the map in pre-training, by which distances are measured.
        trained: interpolate the bias from maps of this (height, width); None computes it for the actual map.
    """

    HIDDEN = 512

    def __init__(self, heads: int, pretrained: tuple[int, int], trained: tuple[int, int] | None) -> None:
        super().__init__()
        if min(pretrained) < 2:
            raise ValueError(f"the map in pre-training is {pretrained}, expected at least 2 positions a side")
        self.pretrained, self.trained = pretrained, trained
        self.fc1 = nn.Linear(2, self.HIDDEN)
        self.fc2 = nn.Linear(self.HIDDEN, heads)

    def forward(
        self,
        queries: tuple[int, int],
        keys: tuple[int, int],
        like: torch.Tensor,
        trained_keys: tuple[int, int],
    ) -> torch.Tensor:
        """The bias (heads, queries, keys) of a map pooled to `keys`.

        Args:
            queries, keys: (height, width) of the map and of the pooled map.
            like: a map of the network's device and dtype.
            trained_keys: (height, width) to which `trained` was pooled.
        """
        if self.trained is None or same((*self.trained, *trained_keys), (*queries, *keys)):
            return self._exact(queries, keys, like)
        return _interpolate(self._exact(self.trained, trained_keys, like), self.trained, trained_keys, queries, keys)

    def _exact(self, queries: tuple[int, int], keys: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        if exporting():  # fewer steps
            coordinates, index = pooled_pairs(*queries, *keys, *self.pretrained, device=like.device)
            table = self.fc2(F.relu(self.fc1(coordinates.to(like.dtype)))).t()
            return table.index_select(1, index).unflatten(1, (queries[0] * queries[1], keys[0] * keys[1]))
        sides = zip(queries, keys, self.pretrained, strict=True)
        rows, columns = (pooled_distances(*side, device=like.device)[1] for side in sides)
        pairs = self._table(queries, keys, like).index_select(2, columns.flatten()).index_select(1, rows.flatten())
        return pairs.unflatten(2, columns.shape).unflatten(1, rows.shape).transpose(2, 3).flatten(3).flatten(1, 2)

    @per_weights
    def _table(self, queries: tuple[int, int], keys: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        """The bias of all distances that occur, (heads, vertical, horizontal)."""
        sides = zip(queries, keys, self.pretrained, strict=True)
        down, right = (pooled_distances(*side, device=like.device)[0].to(like.dtype) for side in sides)
        linear = type(self.fc1) is type(self.fc2) is nn.Linear and self.fc1.bias is not None
        if linear and cpu.bare(down, self.fc1, self.fc2):
            return self._table_in_parts(down, right)
        pairs = torch.stack(torch.broadcast_tensors(down[:, None], right), dim=-1)
        return self.fc2(F.relu(self.fc1(pairs))).permute(2, 0, 1)

    def _table_in_parts(self, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """`_table` a few rows at a time, so that their hidden layers stay in the CPU's cache.

        The first layer's output for a pair is the sum of one term per axis.
        """
        down, right = (axis[:, None] * w for axis, w in zip((down, right), self.fc1.weight.unbind(1), strict=True))
        right = right + self.fc1.bias
        parts = down.split(max(1, CACHED // right.numel()))
        return torch.cat([self.fc2(F.relu_(part[:, None] + right)) for part in parts]).permute(2, 0, 1)


def _interpolate(
    bias: torch.Tensor,
    queries: tuple[int, int],
    keys: tuple[int, int],
    new_queries: tuple[int, int],
    new_keys: tuple[int, int],
) -> torch.Tensor:
    """(heads, queries, keys) resized bilinearly, first over the map of keys and then over that of queries."""
    heads = bias.shape[0]
    bias = F.interpolate(bias.unflatten(2, keys), new_keys, mode="bilinear").flatten(2).mT
    bias = F.interpolate(bias.unflatten(2, queries), new_queries, mode="bilinear").flatten(2).mT
    return bias.reshape(heads, new_queries[0] * new_queries[1], new_keys[0] * new_keys[1])


@per_size
def pooled_distances(
    length: int, pooled: int, pretrained: int, *, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates of `length` positions relative to the `pooled` keys that adaptive average pooling makes of them.

    A key is at the mean of the positions that it averages, so distances are multiples of one half. If `pooled` divides
    `length`, they are all equal modulo one, and every second multiple suffices.

    Returns:
        The coordinates of all distances query - key that occur, ascending, float32; and the index for each pair,
        (length, pooled).
    """
    key = torch.arange(pooled, device=device)
    twice = key * length // pooled + ((key + 1) * length - 1) // pooled
    position = torch.arange(length, device=device)
    distance = 2 * position[:, None] - twice
    step = 2 - min(length % pooled, 1)
    lowest = -((pooled - 1) * length // pooled + length - 1)
    highest = 2 * (length - 1) - (ceil_div(length, pooled) - 1)
    distances = (torch.arange((highest - lowest) // step + 1, device=device) * step + lowest) / 2
    scaled = 8 * distances / (pretrained - 1)
    return scaled.sign() * scaled.abs().add(1).log2() / 3, (distance - lowest) // step


@per_size
def pooled_pairs(
    height: int, width: int, h: int, w: int, down: int, right: int, *, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates of (height, width) positions relative to (h, w) keys, for a map of (down, right) in pre-training.

    Returns:
        The coordinates of all pairs of a vertical and a horizontal distance, (pairs, 2), and the index for each query
        and key, (height * width * h * w,).
    """
    vertical, rows = pooled_distances(height, h, down, device=device)
    horizontal, columns = pooled_distances(width, w, right, device=device)
    pairs = torch.stack(torch.broadcast_tensors(vertical[:, None], horizontal), dim=-1).flatten(0, 1)
    return pairs, (rows[:, None, :, None] * horizontal.shape[0] + columns[None, :, None, :]).flatten()
