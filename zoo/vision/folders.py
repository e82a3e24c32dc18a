"""Finds the images in a folder by their extension, ignoring hidden files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
"""torchvision's extensions, and those of animations."""
ARRAYS = (".npy",)
"""Additional extensions for images without exactly three channels."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not one of the user's own: `.DS_Store`, `.ipynb_checkpoints`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def extensions(channels: int = 3) -> tuple[str, ...]:
    """The extensions of image files for this number of channels."""
    return PICTURES if channels == 3 else PICTURES + ARRAYS


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and in those below it, in torchvision's order: folder by folder, each sorted by name.

    Raises:
        OSError: if a folder cannot be read, or a link in it leads back to it.
    """
    found = {}
    above: dict[str, set[tuple[int, int]]] = {}
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        status = os.stat(place)
        own, before = (status.st_dev, status.st_ino), above.get(os.path.dirname(place), set())
        if own in before:
            raise OSError(errno.ELOOP, "a link leads back to a folder that it is in", place)
        above[place] = before | {own}
        folders[:] = [name for name in folders if not is_hidden(name)]
        found[place] = [Path(place, name) for name in sorted(files) if not is_hidden(name)]
    return [path for place in sorted(found) for path in found[place]]


def _refuse(error: OSError) -> None:
    raise error


def images_below(folder: Path, channels: int = 3) -> list[Path]:
    """The files of `files_below` with an image extension."""
    allowed = extensions(channels)
    return [path for path in files_below(folder) if path.suffix.lower() in allowed]
