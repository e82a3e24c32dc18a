"""Partition of maps into windows, grids and strided groups."""

from __future__ import annotations

import torch

from zoo.kernels.exporting import contiguous_if_exporting


def partition(x: torch.Tensor, size: tuple[int, int], interval: tuple[int, int]) -> torch.Tensor:
    """Groups of h x w tokens taken every `interval` pixels.

    Interval 1 gives contiguous windows, interval (H/h, W/w) MaxViT's grid.

    Args:
        x: (B, H, W, ...) with H a multiple of h * interval, and W alike.

    Returns:
        (B, groups, h * w, ...).
    """
    batch, height, width, *rest = x.shape
    (h, w), (ih, iw) = size, interval
    x = x.reshape(batch, height // (h * ih), h, ih, width // (w * iw), w, iw, *rest)
    x = contiguous_if_exporting(x.permute(0, 1, 3, 4, 6, 2, 5, *range(7, x.ndim)))
    return x.flatten(5, 6).flatten(1, 4)


def unpartition(
    x: torch.Tensor, size: tuple[int, int], interval: tuple[int, int], shape: tuple[int, int]
) -> torch.Tensor:
    """The inverse of `partition`: (B, groups, h * w, ...) to (B, H, W, ...) with `shape` = (H, W)."""
    batch, _, _, *rest = x.shape
    (h, w), (ih, iw), (height, width) = size, interval, shape
    x = x.reshape(batch, height // (h * ih), ih, width // (w * iw), iw, h, w, *rest)
    x = contiguous_if_exporting(x.permute(0, 1, 5, 2, 3, 6, 4, *range(7, x.ndim)))
    return x.reshape(batch, height, width, *rest)
