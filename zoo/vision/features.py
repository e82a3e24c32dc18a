"""The feature pyramid of a picture, and a picture of the pyramid."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from zoo.models.build import FeaturePyramid
from zoo.vision.images import as_input, reduced


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of one picture.

    Attributes:
        image: the picture as the model saw it.
        maps: one (C, H, W) tensor per level, fine to coarse.
        strides: pixels of the picture per position of each map.
    """

    image: Image.Image
    maps: list[torch.Tensor]
    strides: list[int]


@torch.inference_mode()
def extract(model: nn.Module, image: Image.Image, longest: int = 640) -> Pyramid:
    """The maps of a `features_only` model for a picture of any size and shape.

    Args:
        model: made with `features_only=True`, in evaluation mode.
        image: an RGB picture.
        longest: pictures with a longer side are reduced to it, in pixels; the aspect ratio is kept.
    """
    image = reduced(image, longest)
    pyramid = cast(FeaturePyramid, model)
    levels = pyramid(as_input(pyramid.model, image))
    return Pyramid(image, [level[0] for level in levels], pyramid.feature_info.reduction())


def principal_colours(features: torch.Tensor) -> np.ndarray:
    """(C, H, W) features as an (H, W, 3) picture: the first three principal components, each from 0 to 1."""
    height, width = features.shape[1:]
    vectors = features.flatten(1).t().double()
    vectors = vectors - vectors.mean(dim=0)
    _, _, axes = torch.linalg.svd(vectors, full_matrices=False)
    colours = torch.zeros(height * width, 3, dtype=torch.float64)
    colours[:, : min(3, len(axes))] = vectors @ axes[:3].t()
    low, high = torch.quantile(colours, torch.tensor([0.02, 0.98], dtype=torch.float64), dim=0)
    scaled = (colours - low) / (high - low).clamp_min(1e-12)
    return scaled.clamp(0, 1).view(height, width, 3).numpy()


def save_picture(pyramid: Pyramid, path: str | PathLike[str], title: str) -> Path:
    """Draw the picture beside the principal components of each level and save it as PNG, PDF or SVG."""
    panels = len(pyramid.maps) + 1
    width, height = pyramid.image.size
    figure = Figure(figsize=(3 * panels, 3 * height / width + 0.7), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, panels)
    axes[0].imshow(pyramid.image)
    axes[0].set_title(f"{width} x {height} pixels", fontsize=9)
    for axis, level, stride in zip(axes[1:], pyramid.maps, pyramid.strides, strict=True):
        axis.imshow(principal_colours(level), interpolation="nearest", extent=(0, width, height, 0))
        axis.set_title(f"stride {stride}: {level.shape[0]} channels, {level.shape[2]} x {level.shape[1]}", fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
