"""Tables that depend only on the size of a map, built once per size and device and cached."""

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
    """A decorator for `build(*numbers, device)`, whose result is a tensor or a tuple of tensors.

    On the meta device, and while a program is traced, transformed or observed by a mode, the tables are computed each
    time: a cached tensor would tie a graph to one size, and a traced tensor cannot be reused.
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
