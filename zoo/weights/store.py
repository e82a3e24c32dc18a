"""The weights on this machine: published files and, next to them, their tensors under our names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from zoo.errors import CheckpointError
from zoo.files import folder_of, write_text, written
from zoo.version import __version__
from zoo.weights.download import Expected, check, download, sha256_of
from zoo.weights.files import read_checkpoint
from zoo.weights.manifest import Checkpoint

Tensors = Mapping[str, torch.Tensor]


def original(entry: Checkpoint) -> Path | None:
    """The file of a checkpoint as it was published, if it is on this machine."""
    if (path := folder_of(entry.id) / entry.file).exists():
        return path
    if entry.hub is None:
        return None
    found = try_to_load_from_cache(entry.hub, entry.file)
    return Path(found) if isinstance(found, str) else None


def fetch(entry: Checkpoint) -> Path:
    """The file of a checkpoint as it was published, downloaded if necessary.

    `HF_ENDPOINT` names a mirror of the Hub, `ZOO_MIRROR` one of everything else: `<mirror>/<checkpoint>/<file>`.

    Raises:
        CheckpointError: if it cannot be downloaded, or is not what the manifest expects.
    """
    path = original(entry)
    if path is None:
        if entry.hub is None:
            return _from_address(entry)  # verified before it was moved into place
        path = hub_file(entry.hub, [entry.file])
    check(path, Expected(entry.sha256, entry.size), f"{entry.id}: {path}")
    return path


def tensors_of(entry: Checkpoint, rules: str, convert: Callable[[Tensors], Tensors]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint under our names; downloaded and converted the first time, then cached.

    Args:
        rules: a digest of the conversion rules; files converted by other rules are converted again.
        convert: from published names to ours.

    Raises:
        CheckpointError: if the weights cannot be obtained, read or converted.
    """
    kept = Converted(folder_of(entry.id) / "model.safetensors")
    found = kept.read(entry, rules)
    if found is None:
        path = fetch(entry)
        found = dict(convert(read_checkpoint(path, use_ema=False)))
        kept.write(found, entry, rules, entry.sha256 or sha256_of(path))
    return found


@dataclass(frozen=True)
class Converted:
    """A file of tensors under our names, with a note of its checksum to detect damage."""

    path: Path

    @property
    def note(self) -> Path:
        """The file with its checksum, size and time."""
        return self.path.with_suffix(".json")

    def read(self, entry: Checkpoint, rules: str) -> dict[str, torch.Tensor] | None:
        """The tensors; None if they are absent, damaged, or made by other rules or from another file than expected."""
        try:
            about = self.about()
            wanted = {"rules": rules, "zoo": __version__, "sha256": entry.sha256 or about.get("sha256")}
            if any(about.get(key) != value for key, value in wanted.items()) or not self.intact():
                return None
            return load_file(self.path)
        except (OSError, SafetensorError):
            return None

    def about(self) -> dict[str, str]:
        """The information recorded when it was made."""
        with safe_open(self.path, "pt") as file:
            return file.metadata() or {}

    def intact(self, read: bool = False) -> bool:
        """Whether the file is unchanged; it is read if `read` is set or its modification time has changed."""
        try:
            note, status = json.loads(self.note.read_text()), self.path.stat()
            if not read and (note["size"], note["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
                return True
            return note["sha256"] == sha256_of(self.path)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write(self, tensors: Tensors, entry: Checkpoint, rules: str, sha256: str) -> None:
        """Cache tensors; with a full or read-only disk they are simply converted again next time."""
        source = f"https://huggingface.co/{entry.hub}" if entry.host == "hub" else entry.sources[0]
        about = {"format": "pt", "variant": entry.variant, "checkpoint": entry.id, "source": source}
        about |= {"sha256": sha256, "zoo": __version__, "rules": rules}
        with suppress(OSError, SafetensorError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                with written(self.path) as aside:
                    save_file(dict(tensors), aside, metadata=about)
                    note: dict[str, str | int] = {"sha256": sha256_of(aside)}
                    self.note.unlink(missing_ok=True)
                status = self.path.stat()
                note |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
                write_text(self.note, json.dumps(note))


def hub_file(repository: str, candidates: Sequence[str], revision: str | None = None) -> Path:
    """The first candidate file that exists in a Hub repository, in the Hub's own cache.

    Raises:
        CheckpointError: if there is none, or the Hub cannot be reached.
    """
    try:
        for candidate in candidates:
            with suppress(RemoteEntryNotFoundError):
                return Path(hf_hub_download(repository, candidate, revision=revision))
    except LocalEntryNotFoundError as error:
        reason = "it is not in the cache, and the Hub cannot be reached"
        raise CheckpointError(f"{repository}: {reason}: {_first_line(error)}") from error
    except Exception as error:  # from whichever HTTP library it uses
        raise CheckpointError(f"{repository}: cannot be fetched: {_first_line(error)}") from error
    raise CheckpointError(f"{repository}: has no file {' or '.join(candidates)}")


def _from_address(entry: Checkpoint) -> Path:
    target, mirror = folder_of(entry.id) / entry.file, os.environ.get("ZOO_MIRROR")
    if entry.host != "direct" and not mirror:
        raise CheckpointError(
            f"{entry.id}: is to be fetched by hand. Open {' or '.join(entry.sources)} in a browser, and then "
            f"run `zoo weights import` on the folder, or save the file as {target}"
        )
    if is_offline_mode():
        raise CheckpointError(f"{entry.id}: {target} is not there, and HF_HUB_OFFLINE forbids to fetch it")
    address = f"{mirror.rstrip('/')}/{entry.id}/{entry.file}" if mirror else entry.sources[0]
    return download(address, target, Expected(entry.sha256, entry.size))


def _first_line(error: Exception) -> str:
    return re.split(r"[\r\n]", str(error).strip(), maxsplit=1)[0]
