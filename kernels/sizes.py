"""Checks and computations on sizes that also work in compiled graphs for any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F
from torch.torch_version import TorchVersion

from zoo.kernels.exporting import contiguous_if_exporting

_DYNAMO_IS_MUTE = TorchVersion(torch.__version__) < "2.8"


def statically_true(condition: bool) -> bool:
    """Whether `condition` holds: in this call or, in a compiled graph, for every size that the graph supports.

    Shortcuts for some sizes use it so that a graph is not recompiled for each outcome. PyTorch 2.7 does recompile,
    because its Dynamo has no such query.
    """
    if not torch.compiler.is_compiling() or (_DYNAMO_IS_MUTE and torch.compiler.is_dynamo_compiling()):
        return condition
    return statically_known_true(condition)


def same(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes are always the same."""
    return all(statically_true(a == b) for a, b in zip(shape, other, strict=True))


def ceil_div(length: int, step: int) -> int:
    """`length` divided by `step`, rounded up, in the form that symbolic sizes simplify best."""
    whole = length // step
    return whole if statically_true(whole * step == length) else (length + step - 1) // step


def crop_map(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The top left (B, height, width, ...) of (B, H, W, ...); unlike a slice, exactly so for symbolic sizes."""
    return contiguous_if_exporting(x.narrow(1, 0, height).narrow(2, 0, width))


def pad_map(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, H, W, ...) zero-padded at the right and the bottom to (B, height, width, ...)."""
    bottom, right = height - x.shape[1], width - x.shape[2]
    if statically_true(bottom == 0) and statically_true(right == 0):
        return x
    return F.pad(x, (*(0, 0) * (x.ndim - 3), 0, right, 0, bottom))


def pad_to_multiple(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, ...) zero-padded at the right and the bottom to multiples of `size`."""
    return pad_map(x, *(ceil_div(n, m) * m for n, m in zip(x.shape[1:3], size, strict=True)))


def pad_to_least(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, ...) zero-padded at the right and the bottom to at least `size`."""
    return pad_map(x, *(max(n, least) for n, least in zip(x.shape[1:3], size, strict=True)))
