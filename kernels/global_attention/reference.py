"""Attention over whole maps in plain PyTorch: the specification, on any device and in any dtype."""

from __future__ import annotations

import torch

from zoo.kernels.exporting import contiguous_if_exporting, exporting
from zoo.kernels.transforms import scaled_dot_product_attention


def global_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float | None
) -> torch.Tensor:
    """See `api.global_attention`."""
    height, width = q.shape[1:3]
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
    mask = None if bias is None else bias[None].to(q.dtype)
    if mask is not None and exporting():
        mask = mask.expand(q.shape[0], -1, -1, -1)  # else an exported program is for batches other than 1
    out = scaled_dot_product_attention(q, k, v, mask, scale)
    return contiguous_if_exporting(out.transpose(1, 2)).unflatten(1, (height, width))
