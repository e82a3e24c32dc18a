"""Tables that depend on the size of a map alone: built once per size and device, and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import Any

import torch

from zoo.kernels.watched import watched

_KEPT = 64


def per_size(build: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator of `build(*numbers, device)`, whose result is a tensor or a tuple of tensors.

    On the meta device, and where a program is traced, transformed or watched by a mode, the tables are computed in
    place: a tensor from outside would tie a graph to one size, and one from inside is of no use to others.
    """
    kept: OrderedDict[tuple, Any] = OrderedDict()
    lock = RLock()

    @wraps(build)
    def get(*numbers: Any, device: torch.device) -> Any:
        if device.type == "meta" or watched():
            return build(*numbers, device=device)
        key = (*numbers, device)
        with lock:
            table = kept.pop(key, None)
            if table is None:
                with torch.inference_mode(False), torch.no_grad():
                    table = build(*numbers, device=device)
            kept[key] = table
            while len(kept) > _KEPT:
                kept.popitem(last=False)
        return table

    return get
