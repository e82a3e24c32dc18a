"""Launches all Triton kernels from one place, so that reports can intercept what would run, and on which tensors."""

from __future__ import annotations

from functools import cache

import torch


def launch(kernel, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
    """Run a `triton.jit` kernel over `grid` on the device of its tensors, which need not be the current one.

    Options are its constexprs, num_warps and num_stages. An empty grid (a batch of none) runs nothing.
    """
    if not all(grid):
        return
    device = next(argument.device for argument in arguments if isinstance(argument, torch.Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **options)
    else:
        kernel[grid](*arguments, **options)


@cache
def capability(device: torch.device) -> int:
    """Generation of a GPU as major * 10 + minor, which determines launch parameters; 90 without a GPU."""
    if device.type != "cuda" or torch.version.hip:
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


@cache
def multiprocessors(device: torch.device) -> int:
    """The number of multiprocessors of the GPU; that of an H100 without a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def input_precision(q: torch.Tensor) -> str:
    """How `tl.dot` multiplies: "tf32" for float32 if PyTorch's own products may use it, else "ieee" (exact).

    PyTorch allows it by `torch.set_float32_matmul_precision("high")` or `torch.backends.cuda.matmul`.
    """
    if q.dtype != torch.float32 or q.device.type != "cuda" or torch.version.hip or capability(q.device) < 80:
        return "ieee"
    return "tf32" if _tf32_allowed() else "ieee"


def _tf32_allowed() -> bool:
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # from PyTorch 2.9 on, where reading the older switch may be an error
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32
