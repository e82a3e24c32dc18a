"""Aggregated attention (TransNeXt): one softmax over a window and a pooled map."""

from __future__ import annotations

import torch

from zoo.kernels.aggregated_attention import blockwise, native, operator, reference
from zoo.kernels.backends import choose
from zoo.kernels.checks import check_qkv, check_table
from zoo.kernels.exporting import for_runtimes
from zoo.kernels.recording import recorded


@recorded
def aggregated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pooled_k: torch.Tensor,
    pooled_v: torch.Tensor,
    local_bias: torch.Tensor,
    pooled_bias: torch.Tensor,
    extra: torch.Tensor,
    size: int = 3,
) -> torch.Tensor:
    """(softmax([q k^T + local_bias | q pooled_k^T + pooled_bias]) + [extra | 0]) [v | pooled_v].

    TransNeXt, https://arxiv.org/abs/2311.17132, section 3.1. Every query sees the size x size positions around it and
    all pooled ones; positions outside the map are masked and their values are zero. The queries must be scaled already.

    Args:
        q, k, v: (B, H, W, heads, head_dim), any strides.
        pooled_k, pooled_v: (B, h, w, heads, head_dim), any strides.
        local_bias: (heads, size**2), the window row-major.
        pooled_bias: (heads, H*W, h*w), queries before keys, row-major.
        extra: (B, H, W, heads, size**2), added to the weights of the window after the softmax.
        size: side of the window, odd.

    Returns:
        (B, H, W, heads, head_dim).

    Raises:
        ValueError: if shapes, dtypes or devices do not agree.
    """
    check_qkv(q, k, v)
    check_qkv(q, pooled_k, pooled_v, own_map=False)
    if not isinstance(size, int) or size < 1 or size % 2 == 0:
        raise ValueError(f"size is {size}, expected an odd number")
    heads, queries, keys = q.shape[3], q.shape[1] * q.shape[2], pooled_k.shape[1] * pooled_k.shape[2]
    expected = {
        "local_bias": (local_bias, (heads, size**2)),
        "pooled_bias": (pooled_bias, (heads, queries, keys)),
        "extra": (extra, (*q.shape[:4], size**2)),
    }
    for name, (tensor, shape) in expected.items():
        check_table(name, tensor, shape, q)
    tensors = (q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra)
    if choose(q, native.limit(pooled_k, size)) == "reference":
        form = blockwise if for_runtimes() else reference
        return form.aggregated_attention(*tensors, size)
    return operator.forward(*tensors, size)[0]
