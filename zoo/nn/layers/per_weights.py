"""Tables that depend only on the weights of a layer, cached in inference on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from zoo.nn.layers import cpu
from zoo.nn.layers.hooks import is_hooked

WITHOUT_WEIGHTS = (nn.ModuleList, nn.ReLU, nn.Sequential)
"""Classes whose instances compute the same as long as their contents do; excludes adapters."""


def per_weights(compute: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A decorator for a method `compute(self, *sizes, like)` of a module.

    The result must depend only on the module's parameters, the sizes, and the device and dtype of the tensor `like`.

    The last result is cached outside the module, for its lifetime, together with copies of the parameters. It is used
    only while they are equal to the current ones, so every change of weights is noticed. Only results of bare layers
    in evaluation mode are cached.
    """
    tables: WeakKeyDictionary[nn.Module, tuple[Any, list[torch.Tensor], torch.Tensor]] = WeakKeyDictionary()

    @wraps(compute)
    def get(self: nn.Module, *sizes_and_like: Any) -> torch.Tensor:
        *sizes, like = sizes_and_like
        inner = [module for module in self.modules() if module is not self]
        layers = [module for module in inner if type(module) not in WITHOUT_WEIGHTS]
        if self.training or not cpu.bare(like, *layers) or any(map(is_hooked, inner)):
            return compute(self, *sizes, like)
        parameters = list(self.parameters())
        key = (*sizes, like.dtype, torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
        kept = tables.get(self)
        if kept is None or kept[0] != key or not all(map(_same, kept[1], parameters)):
            kept = key, [p.detach().clone() for p in parameters], compute(self, *sizes, like)
            tables[self] = kept
        return kept[2]

    get.__dict__["of_weights"] = True
    return get


def has_table(module: nn.Module) -> bool:
    """Whether a module computes such a table, so that the speed of its layers matters little."""
    methods = (method for kind in type(module).__mro__ for method in vars(kind).values())
    return any(getattr(method, "of_weights", False) for method in methods)


def _same(kept: torch.Tensor, now: torch.Tensor) -> bool:
    return kept.dtype == now.dtype and torch.equal(kept, now)
