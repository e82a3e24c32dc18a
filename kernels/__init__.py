"""Operations of the mixers: attention on heads-last (B, H, W, heads, head_dim) tensors; depends only on torch.

Each folder holds one operation: `api.py` (definition and checks), `reference.py` (the readable specification),
`cases.py` (the shapes that the zoo's variants use).
"""

from zoo.kernels.aggregated_attention.api import aggregated_attention
from zoo.kernels.backends import explain_backend, use_backend
from zoo.kernels.channel_attention.api import channel_attention
from zoo.kernels.deform_conv.api import deform_conv
from zoo.kernels.depthwise_conv.api import depthwise_conv
from zoo.kernels.global_attention.api import global_attention
from zoo.kernels.neighborhood_attention.api import neighborhood_attention
from zoo.kernels.packed_linear.api import pack, packed_conv
from zoo.kernels.recording import recording
from zoo.kernels.routing_attention.api import region_routes, region_scores, routing_attention
from zoo.kernels.window_attention.api import window_attention

__all__ = [
    "aggregated_attention",
    "channel_attention",
    "deform_conv",
    "depthwise_conv",
    "explain_backend",
    "global_attention",
    "neighborhood_attention",
    "pack",
    "packed_conv",
    "recording",
    "region_routes",
    "region_scores",
    "routing_attention",
    "use_backend",
    "window_attention",
]
