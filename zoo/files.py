"""Files that are either whole or not there, and the folder for those that are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def home() -> Path:
    """The folder of everything that is kept on this machine: `ZOO_HOME`, else `zoo` in the user's cache.

    Files of the Hub stay in the Hub's own cache.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("ZOO_HOME") or f"{cache}/zoo").expanduser()


def folder_of(checkpoint_id: str) -> Path:
    """The folder of one published checkpoint: the file as published, and its tensors under our names."""
    return home() / "weights" / checkpoint_id


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path to write to instead: after a crash at any moment there is the old file at `path`, or the new one.

    The file gets the permissions that a new file of this process has, whatever wrote it.

    Raises:
        OSError: if it cannot be written; the old file is still there then.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_bytes(b"")
        permissions = aside.stat().st_mode
        yield aside
        aside.chmod(permissions)
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file in one piece."""
    with written(path) as aside:
        aside.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
