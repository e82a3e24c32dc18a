"""Token mixers, one file each; importing the package registers them all."""

from zoo.nn.mixers import (
    aggregated,
    channel,
    cosine,
    dwconv,
    global_attention,
    hilo,
    mbconv,
    neighborhood,
    routing,
    window,
)

__all__ = [
    "aggregated",
    "channel",
    "cosine",
    "dwconv",
    "global_attention",
    "hilo",
    "mbconv",
    "neighborhood",
    "routing",
    "window",
]
