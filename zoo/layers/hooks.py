"""Whether somebody watches a layer."""

from __future__ import annotations

from torch import nn


def is_hooked(layer: nn.Module) -> bool:
    """Whether calling `layer` runs hooks of its own."""
    own = layer.__dict__
    return bool(
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    )
