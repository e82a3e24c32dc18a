"""Questions about sizes that compiled graphs of any size must answer once for all."""

from __future__ import annotations

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F


def always(condition: bool) -> bool:
    """Whether `condition` holds: in this call, or, in a compiled graph, for every size that the graph serves.

    A short cut for some sizes is taken through this, so that a graph is not compiled anew for each outcome.
    """
    return statically_known_true(condition) if torch.compiler.is_compiling() else condition


def steps(length: int, step: int) -> int:
    """How many times `step` fits into `length`, rounded up; in the form that symbolic sizes simplify best."""
    return (length + step - 1) // step


def pad_map(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, H, W, ...) extended by zeros at the right and the bottom to (B, height, width, ...)."""
    bottom, right = height - x.shape[1], width - x.shape[2]
    if always(bottom == 0) and always(right == 0):
        return x
    return F.pad(x, (*(0, 0) * (x.ndim - 3), 0, right, 0, bottom))
