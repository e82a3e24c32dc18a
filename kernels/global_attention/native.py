"""Attention to whole maps on the CPU: calls native.cpp."""

from __future__ import annotations

import torch

from zoo.kernels.native import as_float, call, empty, numbers, strides

MOST_KEYS = 4096
"""The weights of a block of queries to all keys lie in the cache; PyTorch's kernel also cuts the keys into blocks."""


WIDEST_HEAD = 256


def limit(k: torch.Tensor, bias: torch.Tensor | None = None) -> str:
    """Why the C++ kernel does not compute a call; empty if it does."""
    if bias is not None:
        return "the C++ kernel takes no bias"
    if k.shape[4] > WIDEST_HEAD:
        return f"the C++ kernel takes heads of at most {WIDEST_HEAD} channels, not {k.shape[4]}"
    keys = k.shape[1] * k.shape[2]
    return f"the C++ kernel takes at most {MOST_KEYS} keys, not {keys}" if keys > MOST_KEYS else ""


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """See `api.global_attention`, which checks the arguments."""
    q, k, v = (as_float(t) for t in (q, k, v))
    out = empty(q.shape)
    shape = numbers(*q.shape[:3], *k.shape[1:3], *q.shape[3:])
    call("global_attention_forward", q, k, v, out, shape, strides(q, k, v, out), scale)
    return out
