"""Reading checkpoint files without running anything that they contain."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from safetensors.torch import load_file

from zoo.errors import CheckpointError, shorten

WRAPPERS = ("model", "state_dict", "model_state_dict", "state_dict_ema", "model_ema")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")


def read_checkpoint(path: str | PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors`, `.pth`, `.pth.tar`, `.pt`, `.bin` or `.ckpt` file, on the CPU.

    Pickles are opened with `weights_only=True`. A state dict inside a training checkpoint is found under the
    usual keys (`model`, `state_dict`, ...).

    Raises:
        CheckpointError: if the file is missing, damaged, holds code, holds no tensors, or claims to hold more than it
            does.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: expected a file that ends in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything from either reader
        raise CheckpointError(f"{path}: cannot be read as a checkpoint. {_reason(error)}") from error
    return as_state_dict(content, str(path))


def as_state_dict(content: Any, source: str = "checkpoint") -> dict[str, torch.Tensor]:
    """`content`, or the mapping under its wrapper key, if it maps names to tensors.

    Raises:
        CheckpointError: if it does not.
    """
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                return as_state_dict(content[wrapper], source)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{source}: holds {shorten(content)}, expected parameter names and tensors")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{source}: {shorten(key)} is a {type(value).__name__}, expected a tensor")
        if value.is_sparse or value.is_quantized or value.numel() * value.element_size() > _held(value):
            raise CheckpointError(f"{source}: {shorten(key)} claims {tuple(value.shape)}, more numbers than it holds")
    return _strip_prefix(dict(content))


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is: PyTorch packs tensors as they are."""
    if not is_zipfile(path):
        return
    with ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            f"{path}: unpacks to {unpacked / 1e9:.1f} GB, more than it is: not made by PyTorch, refused"
        )


def _held(value: torch.Tensor) -> int:
    """Bytes behind a tensor."""
    return value.numel() * value.element_size() if value.is_meta else value.untyped_storage().nbytes()


def _strip_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the prefix that data parallel training or `torch.compile` puts before every key."""
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in state):
            return _strip_prefix({key[len(prefix) :]: value for key, value in state.items()})
    return state


def _reason(error: Exception) -> str:
    if "weights_only" in str(error) or "Unsupported" in str(error):
        return "It asks to run code while loading, which is refused; ask its publisher for a safetensors file."
    return f"It may be truncated or damaged ({type(error).__name__}: {shorten(str(error), 160)}); fetch it again."
