"""Sources of images and their classes: folders, tar files, shards, Hugging Face; checked before the first step."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from timm.data.readers import create_reader
from timm.data.readers.img_extensions import get_img_extensions, set_img_extensions
from timm.data.readers.reader import Reader

from zoo.errors import ConfigError
from zoo.text import printable
from zoo.training.data.classes import is_file_list, read_list
from zoo.training.data.folders import FolderReader, TarReader, some
from zoo.training.data.shards import ShardReader, is_webdataset, tar_files
from zoo.training.needs import needs
from zoo.training.recipe import Recipe
from zoo.vision.folders import extensions, is_hidden

TRAIN = ("train", "training")
VALIDATION = ("validation", "val", "valid", "test")
HUGGING_FACE = "hfds/"


@dataclass(frozen=True)
class Split:
    """Images with classes.

    Attributes:
        reader: gives a file and a class for an index.
        indices: (N) of the images of this split in the reader.
        targets: (N) their classes, as indices into `classes`.
        classes: names.
    """

    reader: Reader
    indices: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, position: int) -> str:
        """The file of an image."""
        return str(self.reader.filename(int(self.indices[position]), absolute=True))

    def open(self, position: int) -> BinaryIO:
        """Open the file of an image."""
        files: Any = self.reader  # timm's base class does not declare this common attribute
        return files[int(self.indices[position])][0]

    def identity(self) -> dict[str, list[Any]]:
        """For each class the number of its images and a checksum of their names and sizes, not of their content."""
        identity: Any = getattr(self.reader, "identity", str)
        digests = {target: hashlib.sha256() for target in range(len(self.classes))}
        for index, target in zip(self.indices.tolist(), self.targets.tolist(), strict=True):
            digests[target].update(f"{identity(index)}\n".encode("utf-8", "surrogateescape"))
        counts = np.bincount(self.targets, minlength=len(self.classes)).tolist()
        return {name: [counts[i], digests[i].hexdigest()[:16]] for i, name in enumerate(self.classes)}

    def take(self, kept: np.ndarray) -> Split:
        """The images for which `kept`, (N), is true."""
        return Split(self.reader, self.indices[kept], self.targets[kept], self.classes)


def open_splits(recipe: Recipe) -> tuple[Split, Split]:
    """The training and the validation images of a recipe, with the same classes.

    Raises:
        ConfigError: if there are none, or their classes do not match.
    """
    train = _open(recipe.data, recipe.train_split, TRAIN, recipe.in_chans)
    chosen = None if recipe.classes is None else read_list(recipe.classes)
    train = select(train, chosen, recipe.data)
    validation = _find(recipe.data, recipe.val_split, VALIDATION)
    if validation is None:
        return _hold_out(train, recipe)
    held = _read(recipe.data, validation, recipe.in_chans)
    return train, select(held, chosen, f"{recipe.data}, {validation}", train.classes)


def open_validation(
    data: str, split: str | None, classes: str | None, names: Sequence[str], channels: int = 3
) -> Split:
    """Validation images for a classifier with the classes `names` and this number of `channels`.

    Raises:
        ConfigError: if there are none, or their classes differ.
    """
    chosen = None if classes is None else read_list(classes)
    return select(_open(data, split, VALIDATION, channels), chosen, data, tuple(names))


def class_names(data: str, split: str | None = None, channels: int = 3) -> tuple[str, ...]:
    """The classes of validation images, in order."""
    return _open(data, split, VALIDATION, channels).classes


def select(split: Split, chosen: list[str] | None, place: str, classes: tuple[str, ...] | None = None) -> Split:
    """The part of a split listed by a class list or file list, with the class indices of `classes`.

    Raises:
        ConfigError: for names that are not there, and for classes that are not among `classes`.
    """
    if chosen is not None and is_file_list(chosen):
        split, chosen = _listed(split, chosen, place), None
    if chosen is not None and (absent := [name for name in chosen if name not in split.classes]):
        raise ConfigError(f"{place}: has no class {some(absent)}; it has {some(split.classes)}")
    present = chosen or split.classes
    classes = classes or tuple(present)
    if strange := [name for name in present if name not in classes]:
        raise ConfigError(f"{place}: has classes that are not the model's: {some(strange)}; those are {some(classes)}")
    wanted = {name: classes.index(name) for name in present}
    renumbered = np.array([wanted.get(name, -1) for name in split.classes])
    targets = renumbered[split.targets]
    found = Split(split.reader, split.indices, targets, classes).take(targets >= 0)
    if not len(found):
        raise ConfigError(f"{place}: has no images")
    return found


def _listed(split: Split, names: list[str], place: str) -> Split:
    """The images that a file list names, by their path from the root or by their file name."""
    wanted, filename = set(names), split.reader.filename
    found = [bool({filename(int(i)), filename(int(i), basename=True)} & wanted) for i in split.indices]
    if not any(found):
        raise ConfigError(f"{place}: has none of the {len(names)} files listed, the first of which is {names[0]}")
    return split.take(np.array(found))


def _hold_out(split: Split, recipe: Recipe) -> tuple[Split, Split]:
    """Divide a split: a share of each class, drawn by the seed, is held out for validation."""
    generator = np.random.default_rng(recipe.seed)
    held = np.zeros(len(split), dtype=bool)
    for target in np.unique(split.targets):
        members = generator.permutation(np.flatnonzero(split.targets == target))
        held[members[: max(1, round(recipe.val_share * len(members)))] if len(members) > 1 else []] = True
    if not held.any():
        raise ConfigError(f"{recipe.data}: has one image a class, too few to hold some out for validation")
    return split.take(~held), split.take(held)


def _open(data: str, split: str | None, usual: Sequence[str], channels: int) -> Split:
    """The named split, else the usual one, else everything."""
    return _read(data, _find(data, split, usual), channels)


def _find(data: str, split: str | None, usual: Sequence[str]) -> str | None:
    """The name of an existing split; None if there are no splits."""
    if data.startswith(HUGGING_FACE):
        return split or usual[0]
    root = Path(data)
    if not root.exists():
        raise ConfigError(f"{data}: there is no such folder or file")
    if _is_the_system(root.resolve()):
        raise ConfigError(
            f"{data}: is the operating system's, expected a folder of images with a folder for each class"
        )
    if split is not None and not (root / split).exists():
        there = [path.name for path in sorted(root.iterdir()) if not is_hidden(path.name)] if root.is_dir() else []
        raise ConfigError(f"{data}: has no split {split!r}; it has {some(there)}")
    return split or next((name for name in usual if (root / name).is_dir() or (root / f"{name}.tar").is_file()), None)


def _is_the_system(root: Path) -> bool:
    """Whether a folder is the root of a disk or of what a kernel shows as files, and has no end."""
    return root == Path(root.anchor) or str(root) == "/dev" or root.parts[:2] in (("/", "proc"), ("/", "sys"))


def _read(data: str, split: str | None, channels: int) -> Split:
    """All images of one split, with its own classes."""
    place = data if split is None else f"{data}, {split}"
    try:
        with _looked_for(extensions(channels)):
            reader: Any = _reader(data, split, channels)
    except (RuntimeError, AssertionError, ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{place}: cannot be read as a data set: {str(error) or type(error).__name__}") from error
    numbers = getattr(reader, "class_to_idx", None) or reader.class_name_to_idx
    classes = tuple(map(printable, sorted(numbers, key=numbers.get)))
    if alike := [name for name, count in Counter(classes).items() for _ in range(count) if count > 1]:
        raise ConfigError(f"{place}: has {len(alike)} classes whose names look like {alike[0]!r}; rename one of them")
    if (targets := getattr(reader, "targets", None)) is None:
        pairs = getattr(reader, "samples", None)
        targets = [target for _, target in pairs] if pairs is not None else list(reader.iter_targets())
    targets = np.asarray(targets)
    if not len(targets):
        raise ConfigError(f"{place}: has no images, which are looked for in folders and by their extension")
    if isinstance(reader, TarReader) and set(classes) <= {*TRAIN, *VALIDATION}:
        raise ConfigError(
            f"{place}: holds the splits {some(classes)} in one tar file, expected a folder for each class: unpack it, "
            f"or make a tar file of each split, {TRAIN[0]}.tar and {VALIDATION[0]}.tar, in one folder"
        )
    return Split(reader, np.arange(len(targets)), targets, classes)


@contextmanager
def _looked_for(names: Sequence[str]) -> Iterator[None]:
    """Within this context timm's readers look for files of these extensions."""
    before = get_img_extensions()
    set_img_extensions(names)
    try:
        yield
    finally:
        set_img_extensions(before)


def _reader(data: str, split: str | None, channels: int) -> Reader:
    if data.startswith(HUGGING_FACE):
        needs("datasets", "datasets")
        return create_reader(data, **({} if split is None else {"split": split}))
    root = Path(data)
    if split is not None:
        root = root / split if (root / split).exists() else root / f"{split}.tar"
    if root.suffix == ".tar" or tar_files(root):
        return ShardReader(root) if is_webdataset(root) else TarReader(root)
    return FolderReader(root, channels)
