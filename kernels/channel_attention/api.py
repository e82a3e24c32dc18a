"""Attention between the channels of each head, over all positions of a feature map."""

from __future__ import annotations

import torch

from zoo.kernels.backends import infers_natively
from zoo.kernels.channel_attention import native, reference
from zoo.kernels.checks import check_qkv, check_scale
from zoo.kernels.recording import recorded


@recorded
def channel_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """DaViT's channel group attention (Ding et al. 2022, https://arxiv.org/abs/2204.03645, equation 3).

    Per head, A = softmax(scale * k^T v) over the last axis, a head_dim x head_dim matrix of channels, and the
    output at each position is A q: the queries carry the content, keys and values the weights.

    On the CPU a C++ kernel runs in float32 where no gradient is wanted, elsewhere PyTorch's own operators.

    Args:
        q, k, v: (B, H, W, heads, head_dim), any strides; heads are the channel groups.
        scale: factor of the logits; head_dim ** -0.5 when None.

    Returns:
        (B, H, W, heads, head_dim).

    Raises:
        ValueError: if shapes, dtypes or devices do not agree.
    """
    check_qkv(q, k, v)
    scale = check_scale(scale, q.shape[-1])
    if infers_natively(q, k, v) and not native.limit(q):
        return native.forward(q, k, v, scale)
    return reference.channel_attention(q, k, v, scale)
