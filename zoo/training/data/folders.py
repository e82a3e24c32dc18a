"""Folders and tar files of images: the first folder level is the class, hidden files and folders are ignored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from zoo.errors import ConfigError
from zoo.vision.folders import images_below, is_hidden


class FolderReader(Reader):
    """An ImageFolder as torchvision reads it: the classes are the folders in `root`, whatever lies deeper in them.

    Args:
        channels: of the images; determines the extensions that are searched for.

    Raises:
        ConfigError: if there are no folders, or one of them has no images.
    """

    def __init__(self, root: Path, channels: int = 3) -> None:
        super().__init__()
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
        if not names:
            raise ConfigError(f"{root}: has no folders, expected one a class, or tar files")
        self.class_to_idx = {name: i for i, name in enumerate(names)}
        self._above = len(str(root / names[0])) - len(names[0])
        images = {name: images_below(root / name, channels) for name in names}
        if empty := [name for name in names if not images[name]]:
            raise ConfigError(f"{root}: class folders without images: {some(empty)}")
        self.samples = [(str(path), i) for i, name in enumerate(names) for path in images[name]]

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        path, target = self.samples[index]
        return open(path, "rb"), target

    def __len__(self) -> int:
        return len(self.samples)

    def identity(self, index: int) -> str:
        """What tells a file from others without reading it: its name and its size."""
        try:
            size = os.path.getsize(self.samples[index][0])
        except OSError:  # a link to nowhere, which is reported when it is to be read
            size = -1
        return f"{self._filename(index)} {size}"

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        if basename:
            return os.path.basename(path)
        return path if absolute else path[self._above :]


class TarReader(ReaderImageInTar):
    """Images of a tar file with a folder for each class, or of a folder of tar files.

    A single top-level folder that contains everything in an archive is not a class. In a folder of tar files, a tar
    file with images at its top level is a class by itself; the classes of the others are found as in a single tar file.
    """

    def __init__(self, root: Path) -> None:
        # Next to more than 10 GB of tar files timm stores an index, if it can.
        writable = os.access(root if root.is_dir() else root.parent, os.W_OK)
        super().__init__(str(root), cache_tarinfo=None if writable else False)
        paths = [_path(sample) for sample in self.samples]
        by_archive: dict[str, list[int]] = {}
        for i, path in enumerate(paths):
            if not any(map(is_hidden, path.parts)):
                by_archive.setdefault(self.samples[i][1] or "", []).append(i)
        names: dict[int, str] = {}
        for archive, own in by_archive.items():
            found = _first_folders([paths[i].parts[:-1] for i in own])
            if archive and "" in found:
                found = [Path(archive).stem] * len(own)
            names |= {i: name for i, name in zip(own, found, strict=True) if name}
        kept = sorted(names)
        classes = sorted(set(names.values()))
        self.samples = self.samples[kept]
        self.class_name_to_idx = {name: i for i, name in enumerate(classes)}
        self.class_idx_to_name = dict(enumerate(classes))
        self.targets = np.array([self.class_name_to_idx[names[i]] for i in kept], dtype=np.int64)

    def identity(self, index: int) -> str:
        """What tells an image from others without reading it: its name and its size."""
        return f"{self._filename(index)} {self.samples[index][0].size}"


def some(names: Sequence[str], most: int = 8) -> str:
    """A few of the names, for a message."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def _path(sample: Any) -> PurePosixPath:
    """The path of an image of timm's reader in its tar file, with nested tar files as folders."""
    member, _, inner = sample
    return PurePosixPath(os.path.splitext(inner.path)[0] if inner else "", member.path.lstrip("/"))


def _first_folders(folders: list[tuple[str, ...]]) -> list[str]:
    """For each folder path, the first folder below the common prefix, "" for none; a shared last folder is kept."""
    depth = 0
    while all(len(path) > depth + 1 and path[depth] == folders[0][depth] for path in folders):
        depth += 1
    return [path[depth] if path else "" for path in folders]
