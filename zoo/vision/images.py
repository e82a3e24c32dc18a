"""Reads pictures of many kinds as RGB, or with the number of channels that a model takes."""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, overload

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from timm.data import resolve_data_config, resolve_model_data_config
from torch import nn
from torchvision.transforms.functional import normalize, pil_to_tensor

from zoo.models.load import backbone_of
from zoo.text import printable
from zoo.vision.arrays import from_array, from_picture, is_array

MOST_PIXELS = 2**27
"""The limit for one picture; anything larger is treated as a decompression bomb."""


class ImageError(ValueError):
    """A picture cannot be read."""


@overload
def read_image(path: str | PathLike[str], channels: Literal[3] = 3) -> Image.Image: ...
@overload
def read_image(path: str | PathLike[str], channels: int = 3) -> Image.Image | torch.Tensor: ...
def read_image(path: str | PathLike[str], channels: int = 3) -> Image.Image | torch.Tensor:
    """The picture at `path`, rotated by its EXIF data, in RGB; with other channels a tensor, as from `decode`.

    Raises:
        ImageError: if the file does not exist, is not a picture, or has another number of channels.
    """
    if not Path(path).is_file():
        raise ImageError(f"{printable(str(path))}: there is no such file")
    try:
        with open(path, "rb") as file:
            return decode(file, channels)[0]
    except (ImageError, OSError) as error:
        raise ImageError(f"{printable(str(path))}: cannot be read as a picture ({error})") from error


def input_config(model: nn.Module) -> dict[str, Any]:
    """timm's `resolve_model_data_config` for the channels that the model takes.

    If its weights give mean and standard deviation for another number of channels, each channel uses their average.
    """
    config, channels = resolve_model_data_config(model), backbone_of(model).in_chans
    for key in ("mean", "std"):
        if len(config[key]) != channels:
            config[key] = (sum(config[key]) / len(config[key]),) * channels
    return config | {"input_size": (channels, *config["input_size"][1:])}


def reduced(image: Image.Image, longest: int) -> Image.Image:
    """The picture with a longer side of at most `longest` pixels; the aspect ratio is kept."""
    if max(image.size) <= longest:
        return image
    image = image.copy()
    image.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    return image


def as_input(model: nn.Module, image: Image.Image) -> torch.Tensor:
    """An RGB picture as the model's input, (1, 3, H, W), normalised as its weights require; its size is kept."""
    data = resolve_data_config(model=model)
    pixels = normalize(pil_to_tensor(image).float() / 255, data["mean"], data["std"])
    return pixels[None].to(next(model.parameters()))


def decode(file: BinaryIO, channels: int = 3) -> tuple[Image.Image | torch.Tensor, tuple[str, ...]]:
    """The first frame of a picture, upright, and what was unusual about it.

    Three channels are RGB, whatever the file holds; 16-bit greys keep their range instead of being clipped at 255. With
    another number, the file's own channels are returned as a tensor (channels, H, W), with integers divided by their
    largest value.

    Raises:
        ImageError: if it is empty, damaged or truncated, has other channels, or is larger than `MOST_PIXELS`.
    """
    try:
        if channels != 3 and is_array(file):
            return from_array(file, channels), ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata and large pictures
            with Image.open(file) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise ImageError(f"{width} x {height} pixels, more than {MOST_PIXELS}")
                image.load()
                turned = _is_turned(image)
                notes = _unusual(image, turned, channels)
                upright = ImageOps.exif_transpose(image) if turned else image
                return _to_rgb(upright) if channels == 3 else from_picture(upright, channels), notes
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ImageError(_reason(file, error, channels)) from error


def _is_turned(image: Image.Image) -> bool:
    """Whether the EXIF data ask for a rotation; damaged data are ignored."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # Pillow raises many kinds for damaged metadata
        return False


def _unusual(image: Image.Image, turned: bool, channels: int) -> tuple[str, ...]:
    """Descriptions of what other readers may interpret differently."""
    notes = []
    if channels == 3:
        notes += [f"{image.mode} colours"] if image.mode in ("CMYK", "LAB", "YCbCr", "HSV") else []
        notes += ["16-bit or more"] if image.mode.startswith(("I", "F")) else []
        notes += ["transparent"] if image.has_transparency_data else []
    animated = getattr(image, "is_animated", False) and image.format != "MPO"  # an MPO is a photo with a preview
    notes += ["animated: first frame"] if animated else []
    notes += ["turned by EXIF"] if turned else []
    return tuple(notes)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float32)
        most = 65535 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255
        image = Image.fromarray((values.clip(0, most) * (255 / most)).round().astype(np.uint8))
    return image.convert("RGB")


def _reason(file: BinaryIO, error: Exception, channels: int) -> str:
    if file.seek(0, 2) == 0:
        return "an empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture" + ("; save images of more than 4 channels as .npy (H, W, C)" if channels > 4 else "")
    return str(error) or type(error).__name__
