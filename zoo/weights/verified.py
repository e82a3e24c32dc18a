"""Tensor files that are written completely or not at all, with a checksum inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from zoo.errors import CheckpointError
from zoo.files import written
from zoo.weights.mistaken import check_content

CHECKSUM = "sha256"


def write_verified(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically: after a crash there is either the old file or the new one.

    Raises:
        CheckpointError: if it cannot be written; the old file is then kept.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        with written(path) as aside:
            save_file(tensors, aside, metadata={**metadata, CHECKSUM: checksum(tensors, metadata)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); what stood there before is kept") from error


def read_verified(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and metadata of a file written by `write_verified`.

    Raises:
        CheckpointError: if it is missing or damaged, or `write_verified` did not write it.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if metadata.get(CHECKSUM) != checksum(tensors, {key: metadata[key] for key in metadata if key != CHECKSUM}):
        raise CheckpointError(f"{path}: is damaged, its checksum is another one")
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        check_content(path)
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """The sha256 of names, dtypes, shapes and values, and of everything that is said of them."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
