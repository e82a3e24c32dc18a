"""Window attention in plain PyTorch: the specification, on any device and in any dtype."""

from __future__ import annotations

import torch

from zoo.kernels.exporting import contiguous_if_exporting
from zoo.kernels.partition import partition, unpartition
from zoo.kernels.sizes import ceil_div, crop_map, pad_map, statically_true
from zoo.kernels.transforms import scaled_dot_product_attention


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    size: tuple[int, int],
    interval: tuple[int, int],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """See `api.window_attention`."""
    batch, height, width = q.shape[:3]
    down, across = (ceil_div(n, s * i) * s * i for n, s, i in zip((height, width), size, interval, strict=True))
    whole = (down, across)
    q, k, v = (partition(pad_map(t, *whole), size, interval) for t in (q, k, v))
    groups = q.shape[1]
    q, k, v = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))
    mask = None if bias is None else bias[None].to(q.dtype)
    if not (statically_true(whole[0] == height) and statically_true(whole[1] == width)):
        padding = _padding_mask((height, width), whole, size, interval, q)
        mask = padding if mask is None else padding + mask
        mask = mask.repeat(batch, 1, 1, 1)
    out = scaled_dot_product_attention(q, k, v, mask, scale)
    out = contiguous_if_exporting(out.transpose(1, 2)).unflatten(0, (batch, groups))
    return crop_map(unpartition(out, size, interval, whole), height, width)


def _padding_mask(
    shape: tuple[int, int],
    whole: tuple[int, int],
    size: tuple[int, int],
    interval: tuple[int, int],
    like: torch.Tensor,
) -> torch.Tensor:
    """(groups, 1, 1, tokens): 0 for keys on the map, a large negative number for padding.

    Finite, so that a group without a single real key still has a softmax and a gradient.
    """
    rows, columns = (torch.arange(w, device=like.device) < n for w, n in zip(whole, shape, strict=True))
    real = partition((rows[:, None] & columns[None, :])[None, ..., None], size, interval)[0, :, :, 0]
    mask = torch.zeros(real.shape, dtype=like.dtype, device=like.device)
    mask = mask.masked_fill(~real, torch.finfo(like.dtype).min / 2)
    return mask[:, None, None, :]
