"""Tables that depend on the size of a map alone: built once per size and device, and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

_KEPT = 64


def per_size(build: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator of `build(*numbers, device)`, whose result is a tensor or a tuple of tensors.

    In compiled and exported graphs, and on the meta device, the tables are computed in place: a tensor from
    outside would tie the graph to one size.
    """
    kept: OrderedDict[tuple, Any] = OrderedDict()

    @wraps(build)
    def get(*numbers: Any, device: torch.device) -> Any:
        if torch.compiler.is_compiling() or device.type == "meta":
            return build(*numbers, device=device)
        key = (*numbers, device)
        if key not in kept:
            with torch.inference_mode(False), torch.no_grad():
                kept[key] = build(*numbers, device=device)
            while len(kept) > _KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    return get
