"""Reading pictures."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from PIL import Image, ImageOps


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
