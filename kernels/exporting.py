"""Whether what runs now is written down for other runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_asked = False


def exporting() -> bool:
    """Whether to run PyTorch's own operators alone, out of place and in the form that holds for every size."""
    return _asked or torch.compiler.is_exporting()


def packed(x: torch.Tensor) -> torch.Tensor:
    """`x`, contiguous where it is exported: whether another layout can be reshaped in place depends on the sizes."""
    return x.clone(memory_format=torch.contiguous_format) if exporting() else x


@contextmanager
def export_safe() -> Iterator[None]:
    """Within this context everything runs as it is exported: for tracers unknown to PyTorch."""
    global _asked
    before, _asked = _asked, True
    try:
        yield
    finally:
        _asked = before
