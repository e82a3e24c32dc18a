"""Neighborhood attention in plain PyTorch: the specification, on any device and in any dtype."""

from __future__ import annotations

import torch


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    size: tuple[int, int],
    dilation: tuple[int, int],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """See `api.neighborhood_attention`."""
    height, width = q.shape[1:3]
    rows, row_offsets = neighbors(height, size[0], dilation[0], q.device)
    columns, column_offsets = neighbors(width, size[1], dilation[1], q.device)
    keys = (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(0, 1).flatten(1)

    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, heads, HW, head_dim)
    k, v = k[:, :, keys], v[:, :, keys]  # (B, heads, HW, h * w, head_dim)
    q = q * scale
    logits = (q[..., None, :] @ k.mT)[..., 0, :]
    if bias is not None:
        pairs = bias[:, row_offsets[:, None, :, None], column_offsets[None, :, None, :]]
        logits = logits + pairs.flatten(1, 2).flatten(2)
    out = (logits.softmax(-1).to(v.dtype)[..., None, :] @ v)[..., 0, :]
    return out.transpose(1, 2).unflatten(1, (height, width))


def neighbors(length: int, size: int, dilation: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys of each query on one axis, and where each lies in the table of position biases.

    Positions with one remainder modulo `dilation` form a group. In its group, a query of rank p sees the `size`
    ranks from p - size // 2, shifted so that they stay inside.

    Returns:
        Positions and table indices (key rank - query rank + size - 1), both (length, size).
    """
    position = torch.arange(length, device=device)
    group, rank = position % dilation, position // dilation
    members = (length - 1 - group) // dilation + 1
    first = torch.minimum((rank - size // 2).clamp(min=0), members - size)
    ranks = first[:, None] + torch.arange(size, device=device)
    return ranks * dilation + group[:, None], ranks - rank[:, None] + size - 1
