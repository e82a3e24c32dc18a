"""Channel attention in plain PyTorch: the specification, on any device and in any dtype."""

from __future__ import annotations

import torch


def channel_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
    """See `api.channel_attention`."""
    _, height, width, _, head_dim = q.shape
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
    weights = (k.transpose(-2, -1) @ v * (head_dim**-0.5 if scale is None else scale)).softmax(dim=-1)
    return (q @ weights.transpose(-2, -1)).transpose(1, 2).unflatten(1, (height, width))
