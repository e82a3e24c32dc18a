"""Images without exactly three channels: the content of a file as a tensor, unchanged except for its range."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

MAGIC = b"\x93NUMPY"
KINDS = ("bool", "uint8", "uint16", "int16", "float16", "float32", "float64")


def is_array(file: BinaryIO) -> bool:
    """Whether a file was written by `numpy.save`."""
    start = file.read(len(MAGIC))
    file.seek(0)
    return start == MAGIC


def from_array(file: BinaryIO, channels: int) -> torch.Tensor:
    """An array (H, W, channels), or (H, W) of one channel, as (channels, H, W); integers as a share of their largest.

    Raises:
        ValueError: for a wrong shape or kind of number, or values that are not finite.
    """
    values = np.load(file, allow_pickle=False)
    if values.dtype.name not in KINDS:
        raise ValueError(f"an array of {values.dtype.name}, expected one of {', '.join(KINDS)}")
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] != channels or not values.size:
        raise ValueError(f"an array of shape {values.shape}, expected (height, width, {channels} channels)")
    return _scaled(values, np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1)


def from_picture(image: Image.Image, channels: int) -> torch.Tensor:
    """A picture as (channels, H, W); 8 and 16 bits scaled to 0 to 1, floats unchanged, palette colours looked up.

    Raises:
        ValueError: for a wrong number of channels, or values that are not finite.
    """
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    values = np.asarray(image)
    values = values[:, :, None] if values.ndim == 2 else values
    if values.shape[2] != channels:
        raise ValueError(f"{_channels(values.shape[2])}, {image.mode}, expected {channels}")
    if image.mode == "I" and values.max(initial=0) > 65535:
        raise ValueError(f"values up to {values.max()}, expected at most 65535: grey of 16 bits")
    return _scaled(values, {"I": 65535, "F": 1}.get(image.mode[0], 255))


def grey(image: torch.Tensor) -> Image.Image:
    """A viewable picture: the mean of the channels, scaled from its minimum to its maximum."""
    mean = image.mean(0)
    mean = (mean - mean.min()) / (mean.max() - mean.min()).clamp(min=1e-12)
    return Image.fromarray((255 * mean).round().byte().numpy())


def _scaled(values: np.ndarray, most: int) -> torch.Tensor:
    scaled = torch.from_numpy(values.astype(np.float32) / most).permute(2, 0, 1).contiguous()
    if not scaled.isfinite().all():
        raise ValueError("values that are not finite")
    return scaled


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"
