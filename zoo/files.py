"""Files that are either whole or not there, and the folder for those that are kept."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

_LONGEST = 255
"""Bytes of a file name."""


def home() -> Path:
    """The folder of everything that is kept on this machine: `ZOO_HOME`, else `zoo` in the user's cache.

    Files of the Hub stay in the Hub's own cache.

    Raises:
        ValueError: if it is that of a user who has none.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = os.environ.get("ZOO_HOME") or f"{cache}/zoo"
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{place}: {str(error).rstrip('.')}; set ZOO_HOME to a folder that can be written") from error


def folder_of(checkpoint_id: str) -> Path:
    """The folder of one published checkpoint: the file as published, and its tensors under our names."""
    return home() / "weights" / checkpoint_id


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path to write to instead: after a crash at any moment there is the old file at `path`, or the new one.

    The file gets the permissions that a new file of this process has, whatever wrote it. Links are followed.

    Raises:
        OSError: if it cannot be written, or is no file, as `/dev/null`; what was there is still there then.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "is not a file, and is not replaced by one", str(path))
    aside = path.with_name(_aside(path.name))
    try:
        aside.write_bytes(b"")
        permissions = aside.stat().st_mode
        yield aside
        aside.chmod(permissions)
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
    except OSError as error:
        if error.filename in (None, str(aside)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def move_together(files: Sequence[Path], folder: Path) -> None:
    """Move files into a folder of the same file system, in place of those of the same names: all of them, or none.

    Whoever meanwhile opens the last one, which needs the others, finds those that belong to it, or nothing. The files
    that they replace wait in a folder `.replaced-*`, which stays if the process is killed.

    Raises:
        OSError: if one cannot be moved; what was there is there again.
    """
    for file in files:
        flush(file)
    with TemporaryDirectory(dir=folder, prefix=".replaced-") as aside, ExitStack() as undo:
        for file in reversed(files) if len(files) > 1 else ():
            target, old = folder / file.name, Path(aside) / file.name
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "is a folder, and is not replaced by a file", str(target))
            if target.exists():
                os.replace(target, old)
                undo.callback(os.replace, old, target)
            else:
                undo.callback(target.unlink, missing_ok=True)
        for file in files:
            os.replace(file, folder / file.name)
        undo.pop_all()
    flush(folder)


def _aside(name: str) -> str:
    """The name of a file that becomes another, within the limits of file systems."""
    aside = f".{name}.partial"
    return aside if len(os.fsencode(aside)) <= _LONGEST else f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.partial"


def make_writable(folder: Path) -> None:
    """Create a folder if necessary, and check that files can be written there.

    Raises:
        OSError: if not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=folder).close()


def write_text(path: Path, text: str) -> None:
    """Write a small file in one piece."""
    with written(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file in one piece; JSON has no NaN and no infinity, which become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
