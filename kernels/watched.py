"""Whether something other than PyTorch's own kernels observes the operations that run here."""

from __future__ import annotations

import torch

from zoo.kernels.exporting import exporting
from zoo.kernels.transforms import transformed


def watched() -> bool:
    """Whether a program is traced, transformed or differentiated in forward mode, or observed by a mode."""
    return bool(
        torch.compiler.is_compiling()
        or exporting()
        or transformed()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
    )
