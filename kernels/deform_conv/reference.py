"""Deformable convolution in plain PyTorch: the specification, on any device and in any dtype."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def deform_conv(
    x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, int]
) -> torch.Tensor:
    """See `api.deform_conv`."""
    read = taps(x, offset, (weight.shape[2], weight.shape[3]), stride)
    out = torch.einsum("bhwijc,ocij->bhwo", read, weight)
    return out if bias is None else out + bias


def taps(x: torch.Tensor, offset: torch.Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> torch.Tensor:
    """See `api.taps`."""
    rows, columns = (
        torch.arange(n, device=x.device)[:, None] * s + torch.arange(k, device=x.device)
        for n, s, k in zip(offset.shape[1:3], stride, kernel, strict=True)
    )
    offset = offset.to(torch.promote_types(offset.dtype, torch.float32))  # positions need more than 8 bits
    offset = offset.unflatten(3, (*kernel, 2))  # (B, h, w, kh, kw, 2)
    y = rows[:, None, :, None] + offset[..., 0]
    z = columns[None, :, None, :] + offset[..., 1]
    return _bilinear(x, y, z)


def _bilinear(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """x (B, H, W, C) at real rows `y` and columns `z` (B, ...): (B, ..., C); zeros beyond the map."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 1, 1, 1, 1)).flatten(1, 2)
    # Positions more than one outside the map read only zeros: clamping keeps the indices in the padded map.
    y, z = y.clamp(-1, height), z.clamp(-1, width)
    # NaN has no index, but its weights carry it into the output.
    top, left = (t.detach().floor().clamp(-1, n - 1).nan_to_num(0.0) for t, n in ((y, height), (z, width)))
    image = torch.arange(x.shape[0], device=x.device).view(-1, *(1,) * (y.ndim - 1))
    out: torch.Tensor = 0  # type: ignore[assignment]  # a sum starts with a number
    for row, row_weight in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, column_weight in ((left, 1 - (z - left)), (left + 1, z - left)):
            index = (row + 1).long() * (width + 2) + (column + 1).long()
            out = out + (row_weight * column_weight)[..., None].to(x.dtype) * x[image, index]
    return out
