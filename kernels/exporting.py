"""Whether the running code is being exported for other runtimes."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from zoo.kernels.switch import Switch

UNSEEN = -3e4
"""The bias of a key that a query does not see: its weight is zero. Finite, as int8 needs, and within half precision."""

_asked = Switch("exporting", False)


def exporting() -> bool:
    """Whether to run only PyTorch's own operators, out of place and in a form valid for every size."""
    return _asked.value() or torch.compiler.is_exporting() or torch.jit.is_tracing()


def for_runtimes() -> bool:
    """Whether a program is exported for a runtime; not while one is traced, as by tools that count its operations."""
    return exporting() and not torch.jit.is_tracing()


def contiguous_if_exporting(x: torch.Tensor) -> torch.Tensor:
    """`x`, made contiguous during export: whether another layout can be reshaped in place depends on the sizes."""
    return x.clone(memory_format=torch.contiguous_format) if exporting() else x


def export_safe() -> AbstractContextManager[None]:
    """Within this context everything runs in its exported form, for tracers that PyTorch does not detect."""
    return _asked.to(True)
