"""Two state dicts, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Difference:
    """The difference in one tensor: a sentence, and the largest difference if the shapes agree."""

    name: str
    text: str
    largest: float | None = None


def differences(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> list[Difference]:
    """The tensors that are not equal, in the order of `a`; NaN equals NaN."""
    found = []
    for name in [*a, *(name for name in b if name not in a)]:
        if name not in a or name not in b:
            found.append(Difference(name, f"only in the {'first' if name in a else 'second'}"))
        elif a[name].shape != b[name].shape:
            found.append(Difference(name, f"{tuple(a[name].shape)} and {tuple(b[name].shape)}"))
        elif (largest := _largest(a[name], b[name])) != 0:
            scale = a[name].double().abs().max().item()
            found.append(Difference(name, f"largest difference {largest:.3g}, largest number {scale:.3g}", largest))
        elif a[name].dtype != b[name].dtype:
            found.append(Difference(name, f"equal numbers as {a[name].dtype} and {b[name].dtype}", 0.0))
    return found


def _largest(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest absolute difference, infinite where one is NaN and the other is not."""
    if a.numel() == 0:
        return 0.0
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf).max().item()
