"""How Triton kernels are launched: one door, at which a report can stand and see what would run."""

from __future__ import annotations

import torch


def launch(kernel, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
    """Run a `triton.jit` kernel over `grid`; options are its constexprs, num_warps and num_stages.

    An empty grid (a batch of none) runs nothing.
    """
    if all(grid):
        kernel[grid](*arguments, **options)


def capability(device: torch.device) -> int:
    """Generation of a GPU as major * 10 + minor, by which launch parameters are chosen; 90 without a GPU."""
    if device.type != "cuda" or torch.version.hip:
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
