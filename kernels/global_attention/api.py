"""Attention of every position to every position of a map, its own or a smaller one."""

from __future__ import annotations

import torch

from zoo.kernels.backends import infers_natively
from zoo.kernels.checks import check_qkv, check_scale, check_table
from zoo.kernels.global_attention import native, reference
from zoo.kernels.recording import recorded


@recorded
def global_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale * q k^T + bias) v over all positions of the map of k and v.

    On the CPU a C++ kernel runs in float32 where no gradient is wanted, elsewhere PyTorch's own operator.

    Args:
        q: (B, H, W, heads, head_dim), any strides.
        k, v: (B, h, w, heads, head_dim), any strides.
        bias: (heads, H*W, h*w), queries before keys, row-major.
        scale: factor of the logits; head_dim ** -0.5 when None.

    Returns:
        (B, H, W, heads, head_dim).

    Raises:
        ValueError: if shapes, dtypes or devices do not agree.
    """
    check_qkv(q, k, v, own_map=False)
    pairs = (q.shape[3], q.shape[1] * q.shape[2], k.shape[1] * k.shape[2])
    if bias is not None:
        check_table("bias", bias, pairs, q)
    scale = check_scale(scale, q.shape[-1])
    if infers_natively(q, k, v) and not native.limit(k, bias):
        return native.forward(q, k, v, scale)
    return reference.global_attention(q, k, v, bias, scale)
