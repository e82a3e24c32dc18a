"""Which files of each published checkpoint are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zoo.files import folder_of
from zoo.weights.download import sha256_of
from zoo.weights.manifest import Checkpoint
from zoo.weights.store import Converted, original

State = Literal["right", "unknown", "wrong", "absent"]


@dataclass(frozen=True)
class Status:
    """The files of a checkpoint on this machine.

    Attributes:
        path: the file as published.
        sha256: checksum of that file, computed now.
        state: "right" if it matches the manifest, "wrong", "unknown" if the manifest has no checksum yet, or "absent".
        converted: whether an undamaged copy under our names is cached.
    """

    entry: Checkpoint
    path: Path | None
    sha256: str | None
    state: State
    converted: bool


def verify(entry: Checkpoint) -> Status:
    """Read the local files of a checkpoint and compare them with the manifest."""
    path = original(entry)
    kept = Converted(folder_of(entry.id) / "model.safetensors")
    converted = kept.path.exists() and kept.intact(read=True)
    if path is None:
        return Status(entry, None, None, "absent", converted)
    sha256 = sha256_of(path)
    if entry.sha256 is None:
        return Status(entry, path, sha256, "unknown", converted)
    return Status(entry, path, sha256, "right" if sha256 == entry.sha256 else "wrong", converted)


def summary(entry: Checkpoint) -> str:
    """One word or two, without reading the files."""
    kept = Converted(folder_of(entry.id) / "model.safetensors")
    here = [word for word, found in (("fetched", original(entry)), ("converted", kept.path.exists())) if found]
    return " and ".join(here) or ("not here" if entry.by_machine else "to fetch by hand")
