"""Attention heads as a separate axis."""

from __future__ import annotations

import torch


def count_heads(dim: int, head_dim: int) -> int:
    """How many heads of `head_dim` channels fill the width `dim`.

    Raises:
        ValueError: if none do.
    """
    if dim % head_dim:
        raise ValueError(f"head_dim {head_dim} does not divide the width {dim}")
    return dim // head_dim


def split_heads(x: torch.Tensor, head_dim: int, parts: int = 3) -> tuple[torch.Tensor, ...]:
    """(B, H, W, C) to `parts` tensors (B, H, W, heads, head_dim); channels are ordered (parts, heads, head_dim)."""
    return x.unflatten(-1, (parts, -1, head_dim)).unbind(-3)
