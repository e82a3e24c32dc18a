"""Each image of a padded batch is run on its own, so that padding cannot change the result.

Padding affects real pixels in almost every part: windows are placed by the size of the map, convolutions and
neighbourhoods reach across the image border, and squeeze and excitation, channel attention, regions and pooled maps
average over the whole map. Zeroing the padding between layers would only fix the convolutions. Every part takes any
size, so the exact solution is to run each image at its own size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F


def image_sizes(mask: torch.Tensor, images: torch.Tensor) -> list[tuple[int, int]]:
    """(height, width) of each image of a padded batch.

    Args:
        mask: (B, H, W), true or nonzero where a pixel belongs to the image, a rectangle at the top left.
        images: (B, C, H, W).

    Raises:
        ValueError: if the mask has the wrong shape, or an image is empty or not such a rectangle.
    """
    expected = (images.shape[0], *images.shape[2:])
    if mask.shape != expected:
        raise ValueError(f"the mask is {tuple(mask.shape)}, expected {expected}, true where a pixel is of the image")
    mask = mask.bool()
    rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
    down, right = (torch.arange(n, device=mask.device) for n in mask.shape[1:])
    rectangle = (down < rows[:, None])[:, :, None] & (right < columns[:, None])[:, None, :]
    wrong = ((mask != rectangle).any(2).any(1) | (rows == 0)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"the mask of image {wrong[0]} is empty or no rectangle at the top left: pad images at the "
                         "right and the bottom, and mark their own pixels as true")  # fmt: skip
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def run_per_image(
    run: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    images: torch.Tensor,
    mask: torch.Tensor,
    strides: Sequence[int],
) -> list[torch.Tensor]:
    """Call `run` once for all images of each size, and return the results in the order of the batch.

    Args:
        run: maps images (n, C, h, w) to one tensor per stride: a map (n, D, h', w') or one row per image.
        images: (B, C, H, W), padded at the right and the bottom.
        mask: as for `image_sizes`.
        strides: pixels of the image per position of each map.

    Returns: Maps (B, D, ceil(H / stride), ceil(W / stride)), zero outside each image's own map; rows unchanged.

    Raises:
        ValueError: as `image_sizes`.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, size in enumerate(image_sizes(mask, images)):
        groups[size].append(i)
    if groups.keys() <= {tuple(images.shape[2:])}:
        return list(run(images))
    results = [run(images[indices, :, :height, :width]) for (height, width), indices in groups.items()]
    order = torch.tensor([i for indices in groups.values() for i in indices], device=images.device).argsort()
    return [
        torch.cat([_fill(part, images, stride) for part in parts])[order]
        for stride, *parts in zip(strides, *results, strict=True)
    ]


def _fill(part: torch.Tensor, images: torch.Tensor, stride: int) -> torch.Tensor:
    """A map padded with zeros to the size of the whole batch's map."""
    if part.ndim != 4:
        return part
    height, width = (-(-n // stride) for n in images.shape[2:])
    return F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2]))
