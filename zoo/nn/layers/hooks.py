"""Whether a layer has hooks."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torchs


def all_are_hooked() -> bool:
    """Whether calling any layer at all runs hooks."""
    return bool(
        torchs._global_forward_hooks
        or torchs._global_forward_pre_hooks
        or torchs._global_backward_hooks
        or torchs._global_backward_pre_hooks
    )


def is_hooked(layer: nn.Module) -> bool:
    """Whether calling `layer` runs hooks of its own."""
    own = layer.__dict__
    return bool(
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    )
