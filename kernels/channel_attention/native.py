"""Channel attention on the CPU: calls native.cpp."""

from __future__ import annotations

import torch

from zoo.kernels.native import as_float, call, empty, numbers, strides

MULTIPLE, MOST = 16, 256
"""Channels of a head are a multiple of the first, whole vectors on every processor, and at most the other."""


def limit(q: torch.Tensor) -> str:
    """Why heads have the wrong number of channels for the C++ kernels; empty if they have not."""
    head_dim = q.shape[-1]
    if head_dim % MULTIPLE == 0 and head_dim <= MOST:
        return ""
    return f"the C++ kernels take heads of a multiple of {MULTIPLE} and at most {MOST} channels, not {head_dim}"


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """See `api.channel_attention`, which checks the arguments."""
    q, k, v = (as_float(t) for t in (q, k, v))
    out, weights = empty(q.shape), empty((q.shape[0], q.shape[3], q.shape[4] ** 2))
    call("channel_attention_forward", q, k, v, out, weights, numbers(*q.shape), strides(q, k, v, out), scale)
    return out
