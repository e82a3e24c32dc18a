"""Reading pictures: whatever people have in their folders, to RGB."""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from timm.data import resolve_data_config
from torch import nn
from torchvision.transforms.functional import normalize, pil_to_tensor

MOST_PIXELS = 2**27
"""Of one picture; more is taken for a decompression bomb."""


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
        with open(path, "rb") as file:
            return decode(file)[0]
    except (ImageError, OSError) as error:
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


def decode(file: BinaryIO) -> tuple[Image.Image, tuple[str, ...]]:
    """The first frame of a picture in RGB, upright, and what was unusual about it.

    16-bit greys keep their range instead of being cut off at 255.

    Raises:
        ImageError: if it is empty, damaged, truncated, or larger than `MOST_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata and large pictures
            with Image.open(file) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise ImageError(f"{width} x {height} pixels, more than {MOST_PIXELS}")
                image.load()
                turned = _is_turned(image)
                notes = _unusual(image, turned)
                return _to_rgb(ImageOps.exif_transpose(image) if turned else image), notes
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ImageError(_reason(file, error)) from error


def _is_turned(image: Image.Image) -> bool:
    """Whether the EXIF data say so; damaged ones say nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # Pillow raises many kinds for damaged metadata
        return False


def _unusual(image: Image.Image, turned: bool) -> tuple[str, ...]:
    """In words: what other readers may see differently."""
    notes = [f"{image.mode} colours"] if image.mode in ("CMYK", "LAB", "YCbCr", "HSV") else []
    notes += ["16-bit or more"] if image.mode.startswith(("I", "F")) else []
    notes += ["transparent"] if image.has_transparency_data else []
    animated = getattr(image, "is_animated", False) and image.format != "MPO"  # a photo with a preview
    notes += ["animated: first frame"] if animated else []
    notes += ["turned by EXIF"] if turned else []
    return tuple(notes)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float32)
        most = 65535 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255
        image = Image.fromarray((values.clip(0, most) * (255 / most)).round().astype(np.uint8))
    return image.convert("RGB")


def _reason(file: BinaryIO, error: Exception) -> str:
    if file.seek(0, 2) == 0:
        return "an empty file"
    return "not a picture" if isinstance(error, Image.UnidentifiedImageError) else str(error) or type(error).__name__
