"""Tables that depend on the weights of a layer alone: in inference on a CPU computed once and kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import nn

from zoo.kernels.exporting import exporting


def per_weights(compute: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A decorator of a method `compute(self, *sizes)` of a module that depends on its parameters and the sizes alone.

    The last result is kept with copies of the parameters, and serves as long as they are equal: no change of weights,
    by whatever means, goes unnoticed. Where gradients are recorded, in compiled graphs and off the CPU nothing is kept.
    """

    @wraps(compute)
    def get(self: nn.Module, *sizes: tuple[int, int]) -> torch.Tensor:
        parameters = list(self.parameters())
        if not _may_keep(parameters):
            return compute(self, *sizes)
        key = (compute.__name__, *sizes, torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != key or not all(map(_same, kept[1], parameters)):
            kept = key, [p.detach().clone() for p in parameters], compute(self, *sizes)
            self.__dict__["_kept"] = kept
        return kept[2]

    return get


def _may_keep(parameters: list[nn.Parameter]) -> bool:
    """Whether these are plain parameters on the CPU, not a transform's stand-ins, and no gradient is recorded."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or exporting():
        return False
    return all(type(p) is nn.Parameter and p.device.type == "cpu" for p in parameters)


def _same(kept: torch.Tensor, now: torch.Tensor) -> bool:
    return kept.dtype == now.dtype and torch.equal(kept, now)
