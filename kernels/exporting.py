"""Whether what runs now is written down for other runtimes."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from zoo.kernels.switch import Switch

_asked = Switch("exporting", False)


def exporting() -> bool:
    """Whether to run PyTorch's own operators alone, out of place and in the form that holds for every size."""
    return _asked.value() or torch.compiler.is_exporting() or torch.jit.is_tracing()


def contiguous_if_exporting(x: torch.Tensor) -> torch.Tensor:
    """`x`, contiguous where it is exported: whether another layout can be reshaped in place depends on the sizes."""
    return x.clone(memory_format=torch.contiguous_format) if exporting() else x


def export_safe() -> AbstractContextManager[None]:
    """Within this context everything runs as it is exported: for tracers unknown to PyTorch."""
    return _asked.to(True)
