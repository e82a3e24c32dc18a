"""Tables that depend only on the size of a map, built once per size and device, or once per exported program."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from threading import RLock
from typing import Any

import torch

from zoo.kernels.exporting import exporting
from zoo.kernels.watched import watched

_KEPT = 64
_program: ContextVar[dict[tuple, Any] | None] = ContextVar("program", default=None)


@contextmanager
def one_program() -> Iterator[None]:
    """Within this context, one forward pass that is exported, all layers share the tables of equal sizes."""
    before = _program.set({})
    try:
        yield
    finally:
        _program.reset(before)


def per_size(build: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator for `build(*numbers, device)`, whose result is a tensor or a tuple of tensors.

    On the meta device, and while a program is traced, transformed or observed by a mode, the tables are computed each
    time: a cached tensor would tie a graph to one size, and a traced tensor cannot be reused outside its program.
    """
    kept: OrderedDict[tuple, Any] = OrderedDict()
    lock = RLock()

    @wraps(build)
    def get(*numbers: Any, device: torch.device) -> Any:
        if device.type == "meta" or watched():
            return _once_per_program(build, numbers, device)
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


def _once_per_program(build: Callable[..., Any], numbers: tuple, device: torch.device) -> Any:
    # Dynamo of older versions of PyTorch cannot read context variables.
    tables = None if torch.compiler.is_dynamo_compiling() or not exporting() else _program.get()
    if tables is None:
        return build(*numbers, device=device)
    key = (build, *(n.node.expr if isinstance(n, torch.SymInt) else n for n in numbers), device)
    if key not in tables:
        tables[key] = build(*numbers, device=device)
    return tables[key]
