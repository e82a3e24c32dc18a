"""Reading pictures."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch
from PIL import Image, ImageOps
from timm.data import resolve_data_config
from torch import nn
from torchvision.transforms.functional import normalize, pil_to_tensor


class ImageError(ValueError):
    """A picture cannot be read."""


def read_image(path: str | PathLike[str]) -> Image.Image:
    """The picture at `path` in RGB, turned the way its EXIF data says.

    Raises:
        ImageError: if there is no such file or it is not a picture.
    """
    if not Path(path).is_file():
        raise ImageError(f"{path}: there is no such file")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ImageError(f"{path}: cannot be read as a picture ({error})") from error


def reduced(image: Image.Image, longest: int) -> Image.Image:
    """The picture with a longer side of at most `longest` pixels; the aspect ratio is kept."""
    if max(image.size) <= longest:
        return image
    image = image.copy()
    image.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    return image


def as_input(model: nn.Module, image: Image.Image) -> torch.Tensor:
    """An RGB picture as the model's input, (1, 3, H, W), normalised as its weights ask; its size is kept."""
    data = resolve_data_config(model=model)
    pixels = normalize(pil_to_tensor(image).float() / 255, data["mean"], data["std"])
    return pixels[None].to(next(model.parameters()))
