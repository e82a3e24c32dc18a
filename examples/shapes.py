"""Discs, squares and triangles on photographs: a data set made as it is read, with boxes and masks."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.cbook
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image
from torch.utils.data import Dataset
from torchvision.ops import masks_to_boxes

KINDS = ("disc", "square", "triangle")
CORNERS = {"disc": 40, "square": 4, "triangle": 3}
COLOURS = ("orangered", "deepskyblue", "gold")
BEYOND = torch.tensor([0, 0, 1, 1])  # a box ends behind its last pixel


def photographs(held_out: bool) -> list[Image.Image]:
    """The lower parts of three photographs, to train on, or the upper parts, which are held out."""
    whole = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    whole.append(Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).convert("RGB"))
    parts = []
    for image in whole:
        cut = int(0.4 * image.height)
        parts.append(image.crop((0, 0, image.width, cut) if held_out else (0, cut, *image.size)))
    return parts


class Shapes(Dataset):
    """Square crops of photographs with one to four shapes on each; item i of a seed is always the same.

    An item is an image (3, size, size) from 0 to 1 and a target: boxes (N, 4) as left, top, right, bottom, labels (N,)
    from 1, masks (N, size, size) of what is seen of each shape.
    """

    def __init__(self, length: int, size: int, held_out: bool = False) -> None:
        self.length, self.size = length, size
        self.photographs = photographs(held_out)
        self.seed = int(held_out)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, index))
        pixels = self._background(rng)
        masks, labels = [], []
        for _ in range(rng.integers(1, 5)):
            label = int(rng.integers(len(KINDS)))
            mask = self._outline(rng, KINDS[label])
            if any((seen & mask).sum() > 0.3 * seen.sum() for seen in masks):
                continue
            _paint(rng, pixels, mask)
            masks = [*(seen & ~mask for seen in masks), mask]
            labels.append(label + 1)
        masks = torch.from_numpy(np.stack(masks))
        target = {"boxes": masks_to_boxes(masks) + BEYOND, "labels": torch.tensor(labels), "masks": masks}
        return torch.from_numpy(pixels).permute(2, 0, 1).float().contiguous(), target

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        photograph = self.photographs[rng.integers(len(self.photographs))]
        side = int(rng.uniform(0.3, 1) * min(photograph.size))
        left, top = (int(rng.integers(n - side + 1)) for n in photograph.size)
        crop = photograph.resize((self.size, self.size), box=(left, top, left + side, top + side))
        return np.array(crop)[:, :: rng.choice([-1, 1])] / 255

    def _outline(self, rng: np.random.Generator, kind: str) -> np.ndarray:
        radius = rng.uniform(0.16, 0.3) * self.size
        centre = rng.uniform(radius, self.size - radius, 2)
        angles = rng.uniform(0, math.tau) + np.arange(CORNERS[kind]) * math.tau / CORNERS[kind]
        corners = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        canvas = Image.new("1", (self.size, self.size))
        ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners], fill=1)
        return np.array(canvas)


def _paint(rng: np.random.Generator, pixels: np.ndarray, mask: np.ndarray) -> None:
    """One colour under stripes of another brightness, from 0.6 opaque to fully."""
    y, x = np.mgrid[: len(mask), : len(mask)] * rng.uniform(0.1, 0.8, (2, 1, 1))
    stripes = 0.85 + 0.15 * np.sin(x + y)[..., None]
    opacity = rng.uniform(0.6, 1)
    painted = opacity * rng.uniform(0, 1, 3) * stripes + (1 - opacity) * pixels
    pixels[mask] = painted[mask]


def save_picture(path: Path, truth: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    """Two rows of (3, H, W) pictures under a legend: the truth, and below it what a model has found."""
    figure = Figure(figsize=(1.7 * len(truth), 3.9), layout="constrained")
    axes = figure.subplots(2, len(truth))
    for axis, picture in zip(axes.flat, [*truth, *found], strict=True):
        axis.imshow(picture.permute(1, 2, 0).numpy())
        axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("truth")
    axes[1, 0].set_ylabel("found")
    patches = [Patch(color=colour, label=kind) for kind, colour in zip(KINDS, COLOURS, strict=True)]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(KINDS), frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=80)
