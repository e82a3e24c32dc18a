"""Class lists and class names in words."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from timm.data import ImageNetInfo

from zoo.config.catalog import CONFIG_DIR, read_text
from zoo.errors import ConfigError, Where
from zoo.vision.folders import ARRAYS, PICTURES

CLASS_DIR = CONFIG_DIR / "classes"


def read_list(name: str) -> list[str]:
    """The lines of a shipped class list or of a text file; anything after `#` is ignored.

    Raises:
        ConfigError: if there is no such list, or it is empty or contains duplicates.
    """
    shipped = {path.stem: path for path in sorted(CLASS_DIR.glob("*.txt"))}
    path = shipped.get(name, Path(name))
    if path.suffix != ".txt":
        raise Where("classes").unknown(name, [*shipped, "FILE.txt"], "list")
    try:
        lines = [line.partition("#")[0].strip() for line in read_text(path).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a list ({error})") from error
    found = [line for line in lines if line]
    if not found or len(found) != len(set(found)):
        raise ConfigError(f"{path}: {'a line stands twice' if found else 'is empty'}, expected one name a line")
    return found


def is_file_list(lines: list[str]) -> bool:
    """Whether a list names image files instead of classes."""
    return Path(lines[0]).suffix.lower() in PICTURES + ARRAYS


def describe(names: tuple[str, ...]) -> dict[str, str]:
    """The words for classes whose names are all WordNet synsets of ImageNet; none for other names."""
    info = ImageNetInfo("imagenet-22k")
    known = cast("dict[str, str]", info.label_descriptions(as_dict=True))
    return {name: known[name] for name in names} if all(name in known for name in names) else {}


def imagenet_names(count: int) -> tuple[str, ...] | None:
    """The synsets of a classifier with `count` classes and no label map."""
    return tuple(ImageNetInfo().label_names()) if count == 1000 else None
