"""Attention of every position to its nearest neighbours, optionally dilated."""

from __future__ import annotations

import torch

from zoo.kernels.backends import choose
from zoo.kernels.checks import LARGEST, as_pair, check_qkv, check_scale, check_table
from zoo.kernels.exporting import for_runtimes
from zoo.kernels.neighborhood_attention import blockwise, native, operator, reference
from zoo.kernels.recording import recorded


@recorded
def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    size: int | tuple[int, int],
    dilation: int | tuple[int, int] = 1,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale * q k^T + bias) v over the h x w nearest positions (NAT, https://arxiv.org/abs/2204.07143).

    Near a border the window is shifted inwards, so every query sees exactly h * w keys. With a dilation d the
    rule holds inside each set of positions that are equal modulo d (DiNAT, https://arxiv.org/abs/2209.15001).

    Args:
        q, k, v: (B, H, W, heads, head_dim), any strides; H >= h * dilation and W >= w * dilation.
        size: keys of a query, (h, w) odd numbers or one for both. On the CPU, windows larger than 13 x 15 use PyTorch's
            own, slower operators.
        dilation: pixels between neighbours, per axis.
        bias: (heads, 2h - 1, 2w - 1), indexed by key - query + size - 1 in units of the dilation.
        scale: factor of the logits; head_dim ** -0.5 when None.

    Returns:
        (B, H, W, heads, head_dim).

    Raises:
        ValueError: if shapes, dtypes or devices do not agree, or the map is smaller than a window.
    """
    check_qkv(q, k, v)
    size, dilation = as_pair(size, "size", LARGEST), as_pair(dilation, "dilation")
    if not all(n % 2 for n in size):
        raise ValueError(f"size is {size}, expected odd numbers: a query stands in the middle of its window")
    shape, least = tuple(q.shape[1:3]), tuple(n * d for n, d in zip(size, dilation, strict=True))
    if shape[0] < least[0] or shape[1] < least[1]:
        raise ValueError(f"the map is {shape}, expected at least size * dilation = {least}; pad it first")
    if bias is not None:
        check_table("bias", bias, (q.shape[3], 2 * size[0] - 1, 2 * size[1] - 1), q)
    scale = check_scale(scale, q.shape[-1])
    if choose(q, native.limit(size)) == "reference":
        form = blockwise if for_runtimes() else reference
        return form.neighborhood_attention(q, k, v, size, dilation, bias, scale)
    return operator.forward(q, k, v, bias, size, dilation, scale)[0]
