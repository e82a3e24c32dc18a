"""Random access to WebDataset's tar shards, so that the order of a run can be drawn and resumed."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader

from zoo.errors import ConfigError
from zoo.vision.folders import is_hidden


def tar_files(root: Path) -> list[Path]:
    """The tar files that `root` is or holds."""
    return [root] if root.suffix == ".tar" else sorted(path for path in root.glob("*.tar") if not is_hidden(path.name))


def is_webdataset(root: Path) -> bool:
    """Whether the first tar file stores classes as separate members, `KEY.cls` next to `KEY.jpg`."""
    with tarfile.open(tar_files(root)[0], "r:") as archive:
        first = [member.name for _, member in zip(range(64), archive, strict=False)]
    return any(name.endswith(".cls") for name in first)


class ShardReader(Reader):
    """Images of uncompressed tar shards: only their locations are held in memory.

    `classes.txt` beside the shards, or in the folder above, names the classes in order; without it, their numbers are
    used.

    Raises:
        ConfigError: if a shard is damaged, or an image has no class.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.paths = tar_files(root)
        names, targets, places = [], [], []
        for shard, path in enumerate(self.paths):
            for name, target, offset, size in _members(path):
                names.append(name)
                targets.append(target)
                places.append((shard, offset, size))
        self.names, self.targets, self.places = names, np.array(targets), np.array(places, dtype=np.int64)
        self.class_to_idx = {name: i for i, name in enumerate(self._class_names(root))}

    def _class_names(self, root: Path) -> list[str]:
        count = int(self.targets.max(initial=-1)) + 1
        folder = root if root.is_dir() else root.parent
        for path in (folder / "classes.txt", folder.parent / "classes.txt"):
            if path.is_file():
                names = path.read_text(encoding="utf-8").split("\n")
                names = [name.strip() for name in names if name.strip()]
                if len(names) < count:
                    raise ConfigError(f"{path}: names {len(names)} classes, the shards have {count}")
                return names
        return [str(i) for i in range(count)]

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        shard, offset, size = self.places[index].tolist()
        with open(self.paths[shard], "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), int(self.targets[index])

    def __len__(self) -> int:
        return len(self.names)

    def identity(self, index: int) -> str:
        """What tells an image from others without reading it: its name and its size."""
        return f"{self.names[index]} {self.places[index][2]}"

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.names[index]
        return os.path.basename(name) if basename else f"{self.paths[self.places[index][0]]}/{name}"


def _members(path: Path) -> list[tuple[str, int, int, int]]:
    """(name, class, offset, bytes) of the images in a shard."""
    images, classes = {}, {}
    extensions = get_img_extensions(as_set=True)
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if any(is_hidden(part) for part in member.name.split("/") if part != "."):
                    continue
                folder, _, base = member.name.rpartition("/")
                key, _, extension = base.partition(".")
                if f".{extension.lower()}" in extensions:
                    images[folder, key] = (member.name, member.offset_data, member.size)
                elif extension == "cls" and (file := archive.extractfile(member)) is not None:
                    classes[folder, key] = int(file.read())
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a shard ({error})") from error
    for place, (name, *_) in images.items():
        if place not in classes:
            raise ConfigError(f"{path}: {name} has no class, expected a member {'/'.join(filter(None, place))}.cls")
    return [(name, classes[place], offset, size) for place, (name, offset, size) in images.items()]
