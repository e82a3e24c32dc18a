"""PyTorch's files without the classes that they name: beside tensors there are only things that do nothing."""

from __future__ import annotations

import pickle
import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from functools import cache
from pathlib import Path
from threading import Lock
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch

from zoo.errors import CheckpointError

DATA_MODULES = {
    *("_codecs", "argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions", "functools"),
    *("numbers", "pathlib", "types", "typing", "uuid"),
}
"""Modules of Python's library whose classes a training script may well put beside its tensors."""
BUILTIN_TYPES = {
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range"),
    *("set", "slice", "str", "tuple", "type"),
}
_LEGACY_PICKLES = 4
"""A file of PyTorch before 1.6 begins with a magic number, a version, a description of the machine and the content."""
_FILLED = {"SETITEM": OrderedDict, "item assignment": OrderedDict, "append to lists": list, "extend lists": list}
"""Words of the errors, in all versions of PyTorch, about something that a file fills though it can hold nothing, and
what has to stand there instead."""
_one_at_a_time = Lock()


class StandIn:
    """In place of an object whose class is not looked up: takes whatever the file does to it and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load(path: Path) -> Any:
    """What a file of `torch.save` holds, on the CPU, with a `StandIn` for everything that PyTorch has no part in.

    Nothing that the file names is imported or called, but for what PyTorch itself calls safe and what its user has
    added to that: `torch.load(weights_only=True)` gets a stand-in by every other name.

    Raises:
        CheckpointError: if an archive is not what was written, or the file wants something of Python's library that is
            no data, such as `os.system`.
        Exception: of any kind, if the file is damaged.
    """
    _check_archive(path)
    names = _globals(path)
    if code := sorted(name for name in names if _runs_code(*name)):
        raise CheckpointError(
            f"{path}: asks to run code while loading ({'.'.join(code[0])}), which is refused; "
            "take a safetensors file, or one that holds `model.state_dict()` alone"
        )
    return _load(path, {f"{module}.{name}": stand_in(module, name) for module, name in names})


def _load(path: Path, stand_ins: dict[str, type]) -> Any:
    """`torch.load` with stand-ins; one that the file fills as a mapping or a list becomes one."""
    with _one_at_a_time, torch.serialization.safe_globals([(cls, name) for name, cls in stand_ins.items()]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, TypeError) as error:
            said = str(error)
            filled = [
                name for name, cls in stand_ins.items() if f"got {cls}" in said or f"'{cls.__name__}' object" in said
            ]
            kind = next((kind for words, kind in _FILLED.items() if words in said), None)
            if kind is None or not filled:
                raise
    return _load(path, stand_ins | {name: _container(name, kind) for name in filled})


@cache
def stand_in(module: str, name: str) -> type[StandIn]:
    """The class in place of another, under its name."""
    return type(name, (StandIn,), {"__module__": module, "__qualname__": name})


@cache
def _container(name: str, kind: type) -> type:
    """A class in place of a mapping or a list, whose instances are plain ones."""
    return type(name, (), {"__new__": lambda cls, *args: kind()})


def _runs_code(module: str, name: str) -> bool:
    """Whether a name is of Python's library and stands for no data."""
    root = module.partition(".")[0]
    if root in ("builtins", "__builtin__"):
        return name not in BUILTIN_TYPES
    return root in sys.stdlib_module_names and root not in DATA_MODULES


def _globals(path: Path) -> set[tuple[str, str]]:
    """Module and name of everything that a file refers to, under today's names; nothing is unpickled."""
    if is_zipfile(path):
        with ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            return {found for member in members for found in _named(archive.open(member))}
    with path.open("rb") as file:
        return {found for _ in range(_LEGACY_PICKLES) for found in _named(file)}


def _named(file: IO[bytes]) -> set[tuple[str, str]]:
    """The globals of the pickle that begins here; of one that breaks off, those before."""
    found = set()
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if isinstance(argument, str) and opcode.name not in ("GLOBAL", "INST"):
                strings.append(argument)
            elif opcode.name in ("GLOBAL", "INST"):
                module, _, name = argument.partition(" ")
                found.add(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))
            elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                found.add((strings[-2], strings[-1]))
    except ValueError:
        pass
    return found


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is, for PyTorch packs tensors as they are, or that is damaged."""
    if not is_zipfile(path):
        return
    try:
        with ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > path.stat().st_size:
                raise CheckpointError(
                    f"{path}: unpacks to {unpacked / 1e9:.1f} GB, more than it is: not made by PyTorch, refused"
                )
            damaged = archive.testzip()
    except BadZipFile as error:
        raise CheckpointError(f"{path}: is damaged: {error}; fetch or write it again") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path}: is damaged, the checksum of {damaged} in it is another one; fetch or write it again"
        )
