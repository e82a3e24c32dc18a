"""Attention within windows, grids and strided groups of a feature map."""

from __future__ import annotations

import torch

from zoo.kernels.backends import choose
from zoo.kernels.checks import LARGEST, as_pair, check_qkv, check_scale, check_table
from zoo.kernels.recording import recorded
from zoo.kernels.window_attention import native, operator, reference


@recorded
def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    size: int | tuple[int, int],
    interval: int | tuple[int, int] = 1,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale * q k^T + bias) v inside each group of h x w tokens taken every `interval` pixels.

    A map whose sides are not multiples of size * interval is padded at the right and the bottom; the padding is masked
    and never influences real positions.

    Args:
        q, k, v: (B, H, W, heads, head_dim), any strides.
        size: tokens of a group, (h, w) or one number for both.
        interval: pixels from one token of a group to the next, per axis; 1 for contiguous windows.
        bias: (heads, h*w, h*w), queries before keys, row-major inside the group.
        scale: factor of the logits; head_dim ** -0.5 when None.

    Returns:
        (B, H, W, heads, head_dim).

    Raises:
        ValueError: if shapes, dtypes or devices do not agree.
    """
    check_qkv(q, k, v)
    size, interval = as_pair(size, "size", LARGEST), as_pair(interval, "interval")
    tokens = size[0] * size[1]
    if bias is not None:
        check_table("bias", bias, (q.shape[3], tokens, tokens), q)
    scale = check_scale(scale, q.shape[-1])
    if choose(q, native.limit(size)) == "reference":
        return reference.window_attention(q, k, v, size, interval, bias, scale)
    return operator.forward(q, k, v, bias, size, interval, scale)[0]
