"""Finds the images in a folder by their extension, ignoring hidden files."""

from __future__ import annotations

import os
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
"""torchvision's extensions, and those of animations."""
ARRAYS = (".npy",)
"""Additional extensions for images without exactly three channels."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not one of the user's own: `.DS_Store`, `.ipynb_checkpoints`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def printable(name: str) -> str:
    """A file name with non-UTF-8 bytes, which terminals and text files reject, written as `\\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def extensions(channels: int = 3) -> tuple[str, ...]:
    """The extensions of image files for this number of channels."""
    return PICTURES if channels == 3 else PICTURES + ARRAYS


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and in those below it, in torchvision's order: folder by folder, each sorted by name."""
    found = {}
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        found[place] = [Path(place, name) for name in sorted(files) if not is_hidden(name)]
    return [path for place in sorted(found) for path in found[place]]


def _refuse(error: OSError) -> None:
    raise error


def images_below(folder: Path, channels: int = 3) -> list[Path]:
    """The files of `files_below` with an image extension."""
    allowed = extensions(channels)
    return [path for path in files_below(folder) if path.suffix.lower() in allowed]
