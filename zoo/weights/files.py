"""Reading checkpoint files without running anything that they contain."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.parameter import is_lazy

from zoo.errors import CheckpointError, shorten
from zoo.weights import unpickle
from zoo.weights.mistaken import check_content
from zoo.weights.verified import read_metadata, read_verified

RAW = ("model", "state_dict", "model_state_dict")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Keys of training checkpoints that contain the trained weights and their moving average."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64,
           torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # fmt: skip
"""Dtypes whose values keep their meaning wherever they are copied."""
MOST_TENSORS = 20_000
"""The largest variants have about 1,500."""
_BESIDE = (bool, int, float, str, bytes, PathLike, type(None))
_BESIDE_OF = ("numpy", "pathlib")
_DEEPEST = 8

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A state dict and its place in a training checkpoint.

    Attributes:
        part: the keys that lead to it, as in "state_dict_ema"; empty if the file is the state dict itself.
    """

    tensors: dict[str, torch.Tensor]
    part: str = ""


def read_checkpoint(path: str | PathLike[str], use_ema: bool = True) -> dict[str, torch.Tensor]:
    """Only the tensors of `find_tensors`."""
    return find_tensors(path, use_ema).tensors


def as_state_dict(content: Any, source: str = "checkpoint", use_ema: bool = True) -> dict[str, torch.Tensor]:
    """Only the tensors of `find_in`."""
    return find_in(content, source, use_ema).tensors


def find(source: str | PathLike[str] | Mapping[str, Any], use_ema: bool = True) -> Found:
    """The tensors of a file or a mapping.

    Raises:
        CheckpointError: if it is neither, or as for `find_tensors` and `find_in`.
    """
    if not isinstance(source, (str, PathLike, Mapping)):
        raise CheckpointError(f"checkpoint is {shorten(source)}, expected the path of a file, or a state dict")
    return find_in(source, use_ema=use_ema) if isinstance(source, Mapping) else find_tensors(source, use_ema)


def find_tensors(path: str | PathLike[str], use_ema: bool = True) -> Found:
    """The tensors of a `.safetensors`, `.pth`, `.pth.tar`, `.pt`, `.bin` or `.ckpt` file, on the CPU.

    Pickles are opened with `weights_only=True`, and anything in them that is not from PyTorch is ignored. A state dict
    inside a training checkpoint is found under the usual keys (`model`, `state_dict`, ...).

    Args:
        use_ema: prefer the moving average over the trained weights.

    Raises:
        CheckpointError: if the file is missing or damaged, contains code or no tensors, or claims to contain more than
            it does.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: expected a file that ends in one of {', '.join(SUFFIXES)}")
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file")
        check_content(path)
        content = _read_safetensors(path) if path.suffix == ".safetensors" else unpickle.load(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything from either reader
        raise CheckpointError(f"{path}: cannot be read as a checkpoint. {_reason(error)}") from error
    return find_in(content, str(path), use_ema)


def find_in(content: Any, source: str = "checkpoint", use_ema: bool = True) -> Found:
    """`content`, or the state dict inside it, if it maps names to tensors.

    Numbers, text and paths next to tensors are ignored.

    Raises:
        CheckpointError: if it does not.
    """
    path: list[str] = []
    while (key := _wrapper(content, source, use_ema)) is not None and len(path) < _DEEPEST:
        content = content[key]
        path.append(key)
    values = content.values() if isinstance(content, Mapping) else [content]
    whole = next((value for value in values if _is_module(value)), None)
    if whole is not None and not any(isinstance(value, torch.Tensor) for value in values):
        raise CheckpointError(
            f"{source}: holds {_kind(whole)} as a whole, expected parameter names and tensors: "
            "save `model.state_dict()` instead"
        )
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source}: holds {shorten(content)}, expected parameter names and tensors")
    tensors = {key: _plain(value) for key, value in content.items() if not _is_beside(key, value)}
    if not tensors:
        raise CheckpointError(f"{source}: holds {shorten(list(content))}, expected parameter names and tensors")
    if len(tensors) > MOST_TENSORS:
        raise CheckpointError(f"{source}: holds {len(tensors)} tensors, more than a model and its averages can have")
    for key, value in tensors.items():
        _check(key, value, source)
    return Found(tensors if use_ema else _without_averages(tensors), ".".join(path))


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors, verified by checksum if `zoo train` wrote the file."""
    return read_verified(path)[0] if "model" in read_metadata(path) else load_file(path)


def _wrapper(content: Any, source: str, use_ema: bool) -> str | None:
    """The key of a training checkpoint under which to continue; None at the state dict itself."""
    if not isinstance(content, Mapping):
        return None
    inner = [key for key, value in content.items() if isinstance(key, str) and isinstance(value, Mapping) and value]
    holding = [key for key in inner if _holds(content[key], torch.Tensor)]
    holding = holding or [key for key in inner if _holds(content[key], np.ndarray)]
    raw, averaged = ([key for key in keys if key in holding] for keys in (RAW, AVERAGED))
    if raw and averaged:
        taken, other = (averaged[0], raw[0]) if use_ema else (raw[0], averaged[0])
        _logger.warning("%s: %r is taken, and not %r; see use_ema", source, taken, other)
        return taken
    if raw or averaged:
        return (raw + averaged)[0]
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        return None
    if len(holding) > 1:
        raise CheckpointError(f"{source}: holds tensors under {', '.join(map(shorten, holding[:5]))}: pass one of them")
    return holding[0] if holding else None


def _holds(content: Any, kind: type) -> bool:
    """Whether names map to tensors or arrays; an optimiser uses numbers as keys."""
    pending, seen = [content], set()
    while pending:
        value = pending.pop()
        if isinstance(value, kind):
            return True
        if isinstance(value, Mapping) and id(value) not in seen and all(isinstance(key, str) for key in value):
            seen.add(id(value))
            pending += value.values()
    return False


def _is_beside(key: Any, value: Any) -> bool:
    """Whether an entry is not part of a state dict but extra information from a training script."""
    if isinstance(value, torch.Tensor):
        return False
    if not isinstance(key, str) or "." not in key or isinstance(value, _BESIDE):
        return True
    return _root(value) in _BESIDE_OF and getattr(value, "ndim", 0) == 0


def _root(value: Any) -> str:
    """The package of a value's class."""
    return type(value).__module__.partition(".")[0]


def _plain(value: Any) -> Any:
    """A tensor without gradients and attributes set by the file, such as another `numel`; other values unchanged."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))
    return torch.Tensor.detach(value) if isinstance(value, torch.Tensor) and not is_lazy(value) else value


def _check(key: Any, value: Any, source: str) -> None:
    if not isinstance(key, str) or not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{source}: {shorten(key)} is {_kind(value)}, expected a tensor")
    if is_lazy(value):
        raise CheckpointError(f"{source}: {shorten(key)} has no shape yet: pass an image through its lazy module first")
    odd = value.layout is not torch.strided or value.is_nested or value.is_quantized
    if odd or value.numel() * value.element_size() > _held(value):
        raise CheckpointError(f"{source}: {shorten(key)} claims {tuple(value.shape)}, more numbers than it holds")
    if value.dtype not in NUMBERS:
        raise CheckpointError(
            f"{source}: {shorten(key)} is of {value.dtype}, which means nothing without its scale; "
            "save the checkpoint in float32, float16 or bfloat16"
        )


def _is_module(value: Any) -> bool:
    """Whether a value is, or was in its file, a model instead of data."""
    return isinstance(value, torch.nn.Module) or (
        isinstance(value, unpickle.StandIn) and _root(value) not in (*_BESIDE_OF, "argparse")
    )


def _kind(value: Any) -> str:
    if isinstance(value, unpickle.StandIn):
        return f"a {type(value).__module__}.{type(value).__name__}"
    return f"a {type(value).__name__}"


def _held(value: torch.Tensor) -> int:
    """The number of bytes in a tensor's memory."""
    return value.numel() * value.element_size() if value.is_meta else value.untyped_storage().nbytes()


def _without_averages(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict without entries such as `ema_model.`, if there are others."""
    return {key: value for key, value in state.items() if not is_average(key)} or state


def is_average(name: str) -> bool:
    """Whether a name marks a moving average, as `ema_model.stages.0...` and `model_ema.` do."""
    return any("ema" in part.split("_") for part in name.split("."))


def _reason(error: Exception) -> str:
    said = str(error).partition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    if said:
        said = shorten(said, 200)
        return f"PyTorch refuses it ({said}); save `model.state_dict()` alone, with torch.save or as safetensors."
    return f"It may be truncated or damaged ({type(error).__name__}: {shorten(str(error), 160)}); fetch it again."
