"""Identifies checkpoint files that were downloaded by hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from zoo.errors import CheckpointError
from zoo.files import folder_of, written
from zoo.models.published import as_published
from zoo.weights.download import Expected, check, sha256_of
from zoo.weights.files import SUFFIXES, read_checkpoint
from zoo.weights.manifest import Checkpoint, checkpoints


def candidates(path: Path) -> list[Checkpoint]:
    """The published checkpoints that a file may contain: by checksum, else by tensors, then by name.

    Raises:
        CheckpointError: if the file cannot be read, or fits none.
    """
    sha256 = sha256_of(path)
    if known := [entry for entry in checkpoints() if entry.sha256 == sha256]:
        return known
    state = read_checkpoint(path, use_ema=False)
    fitting = [entry for entry in checkpoints() if entry.sha256 is None and _fits(state, entry)]
    if not fitting:
        raise CheckpointError(f"{path}: fits no published checkpoint: another model, or a part of one")
    return [entry for entry in fitting if path.name in _names(entry)] or fitting


def keep(path: Path, entry: Checkpoint) -> Path:
    """Copy a file to the place where `pretrained=True` looks for the checkpoint.

    Raises:
        CheckpointError: if it is not the file that the manifest expects, or cannot be copied.
    """
    check(path, Expected(entry.sha256, entry.size), str(path))
    target = folder_of(entry.id) / entry.file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"), written(target) as aside:
            shutil.copyfile(path, aside)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def checkpoint_files(place: Path) -> list[Path]:
    """The checkpoint files in a folder and all folders inside it, or the one file.

    Raises:
        CheckpointError: if there is none.
    """
    files = (
        [place]
        if place.is_file()
        else sorted(path for path in place.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    )
    if not files:
        raise CheckpointError(f"{place}: there is no file that ends in one of {', '.join(SUFFIXES)}")
    return files


def _fits(state: dict, entry: Checkpoint) -> bool:
    try:
        as_published(state, entry)
    except CheckpointError:
        return False
    return True


def _names(entry: Checkpoint) -> Iterable[str]:
    """The names under which a checkpoint is published."""
    return {entry.file, *(source.partition("?")[0].rsplit("/", 1)[-1] for source in entry.sources)}
