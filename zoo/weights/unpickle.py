"""Reads PyTorch's files without the classes that they name: everything except tensors becomes an inert object."""

from __future__ import annotations

import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from tarfile import is_tarfile
from threading import Lock
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch

from zoo.errors import CheckpointError

DATA_MODULES = {
    *("_codecs", "argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions", "functools"),
    *("numbers", "pathlib", "types", "typing", "uuid"),
}
"""Modules of the standard library whose classes training scripts may legitimately store next to tensors."""
BUILTIN_TYPES = {
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range"),
    *("set", "slice", "str", "tuple", "type"),
}
_LEGACY_PICKLES = 5
"""A file from PyTorch before 1.6 begins with a magic number, a version, a description of the machine, the content and
the keys of the storages that follow."""
_FILLED = {"SETITEM": OrderedDict, "item assignment": OrderedDict, "append to lists": list, "extend lists": list}
"""Words of the errors, in all versions of PyTorch, about something that a file fills though it can hold nothing, and
what has to stand there instead."""
_one_at_a_time = Lock()


class StandIn:
    """Replaces an object whose class is not looked up: accepts whatever the file does to it and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load(path: Path) -> Any:
    """Load a file written by `torch.save` on the CPU, with a `StandIn` for everything that is not from PyTorch.

    Nothing that the file names is imported or called, except what PyTorch considers safe and what the user has added to
    that: for every other name, `torch.load(weights_only=True)` gets a stand-in.

    Raises:
        CheckpointError: if an archive has been altered, or the file refers to something in the standard library that is
            not data, such as `os.system`.
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
    """`torch.load` with stand-ins; a stand-in that the file fills like a mapping or a list becomes one."""
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


def stand_in(module: str, name: str) -> type[StandIn]:
    """A replacement for a class, with the same name."""
    return type(name, (StandIn,), {"__module__": module, "__qualname__": name})


def _container(name: str, kind: type) -> type:
    """A replacement for a mapping or list class, whose instances are plain mappings or lists."""
    return type(name, (), {"__new__": lambda cls, *args: kind()})


def _runs_code(module: str, name: str) -> bool:
    """Whether a name is from the standard library and does not denote data."""
    root = module.partition(".")[0]
    if root in ("builtins", "__builtin__"):
        return name not in BUILTIN_TYPES
    return root in sys.stdlib_module_names and root not in DATA_MODULES


def _globals(path: Path) -> set[tuple[str, str]]:
    """Module and name of everything that a file refers to, under current names.

    Raises:
        CheckpointError: if storages of a file from before 1.6 are missing, because PyTorch would leave them
            uninitialised.
    """
    if is_zipfile(path):
        with ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            return {found for member in members for found in _Names(archive.open(member)).read().names}
    with path.open("rb") as file:
        *before, content, keys = [_Names(file).read() for _ in range(_LEGACY_PICKLES)]
    if content.storages != set(keys.content or ()):
        raise CheckpointError(f"{path}: is damaged: the storages that it refers to are not those that it holds")
    return {found for part in (*before, content, keys) for found in part.names}


class _Nothing(StandIn):
    """Replaces everything that a pickle creates while only its names are collected."""

    def ignore(self, *args: Any) -> None:
        """Accept whatever the file does to it."""

    __setitem__ = append = extend = add = ignore


class _Names(pickle._Unpickler):
    """Collects the names and storages in a pickle; nothing is imported, and nothing in the file is called.

    It is pure Python, because the C `pickle.Unpickler` allocates memory for as many marks as a file claims to set.

    Attributes:
        names: module and name of every global.
        storages: keys of the storages whose values are elsewhere in the file.
        content: the pickled content, with `_Nothing` in place of objects; None if it is truncated.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.names: set[tuple[str, str]] = set()
        self.storages: set[str] = set()
        self.content: Any = None

    def read(self) -> _Names:
        """Read all of it, or as far as possible."""
        with suppress(Exception):  # damaged files raise anything; PyTorch then says what is wrong
            self.content = self.load()
        return self

    def find_class(self, module: str, name: str) -> type[_Nothing]:
        """Note a name under which the file looks something up."""
        self.names.add(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))
        return _Nothing

    def persistent_load(self, saved: Any) -> _Nothing:
        """Note a storage: ("storage", its type, its key, ...)."""
        self.storages.add(saved[2])
        return _Nothing()


def _check_archive(path: Path) -> None:
    """Refuse an archive that is damaged or unpacks to more than its size: PyTorch stores tensors uncompressed.

    Also refuse PyTorch files that are not pickles of tensors, or that PyTorch can no longer read.
    """
    if not is_zipfile(path):
        if is_tarfile(path):
            raise CheckpointError(
                f"{path}: is a tar archive, as PyTorch wrote before version 0.2, or with a checkpoint in it; unpack "
                "it, or load it with the PyTorch that wrote it and save its `state_dict()`"
            )
        return
    try:
        with ZipFile(path) as archive:
            if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
                raise CheckpointError(
                    f"{path}: is a model of TorchScript, which holds code; open it with `torch.jit.load` and save its "
                    "`state_dict()`"
                )
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
