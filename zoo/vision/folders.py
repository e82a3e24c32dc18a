"""Which files of a folder are images: by their extension, none that a system or an editor hides."""

from __future__ import annotations

import os
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
"""torchvision's extensions, and animations."""
ARRAYS = (".npy",)
"""What images may be stored in that are not of three channels, beside pictures."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: `.DS_Store`, `.ipynb_checkpoints`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def printable(name: str) -> str:
    """A file's name with bytes that are no UTF-8, which neither terminals nor text files take, as `\\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def extensions(channels: int = 3) -> tuple[str, ...]:
    """Of the files that images of so many channels are looked for in."""
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
    """Those of `files_below` that are images by their extension."""
    allowed = extensions(channels)
    return [path for path in files_below(folder) if path.suffix.lower() in allowed]
