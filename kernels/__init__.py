"""Attention operations on heads-last (B, H, W, heads, head_dim) tensors; knows torch alone.

Each folder holds one operation: `api.py` (meaning and checks), `reference.py` (the readable
specification), `cases.py` (the shapes that the zoo's variants use).
"""

from zoo.kernels.channel_attention.api import channel_attention
from zoo.kernels.window_attention.api import window_attention

__all__ = ["channel_attention", "window_attention"]
